"""What no comparison asks for, so that a slip in its file is said at once."""

import math
from collections.abc import Iterable

from trimtab.config import shown
from trimtab.errors import UserError

MOST_RUNS = 10_000
MOST_SEED = 2**31


def check_seeds(seeds: list[int]) -> None:
    """Raises UserError for a seed that a generator of random numbers does not take."""
    if min(seeds) < 0 or max(seeds) > MOST_SEED:
        wanted = "0 or more" if min(seeds) < 0 else f"{MOST_SEED} at most"
        raise UserError(f"seeds is {shown(seeds)}; a seed must be {wanted}")


def check_runs(where: str, choices: Iterable[int]) -> None:
    """Raises UserError if the numbers of choices multiply to more runs than anybody means."""
    if (count := math.prod(choices)) > MOST_RUNS:
        raise UserError(f"{where} asks for {count:,} runs, more than {MOST_RUNS:,}; give fewer values")
