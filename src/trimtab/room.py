"""How much is computed at once: less, when memory turns out not to hold it."""

import logging

import torch

from trimtab.errors import ran_out_of_memory

log = logging.getLogger("trimtab")

ERRORS = (RuntimeError, MemoryError)  # as which devices say that memory has run out


class Room:
    """Tokens, or prompts, that fit into memory at once.

    Attributes:
        size: how many.
        means: what it changes.
    """

    def __init__(self, size: int, unit: str, means: str = "results stay the same") -> None:
        self.size, self.unit, self.means = size, unit, means

    def halve(self, error: BaseException, used: int, least: int = 1) -> None:
        """Half as many from now on. Call it where `error` was caught, and try again where it is let go of.

        Args:
            used: how many there were to compute; perhaps fewer than would have been computed at once.
            least: fewer cannot be computed at once.
        Raises:
            error: if it is about something else, or there is nothing to halve.
        """
        size = min(self.size, used)
        if ran_out_of_memory(error) is None or size <= least:
            raise error
        self.size = max(least, size // 2)
        log.warning(
            "out of memory: from here on %d %s are computed at once; %s", self.size, self.unit, self.means
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
