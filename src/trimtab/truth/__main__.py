"""`python -m trimtab.truth [--out docs/truth.md]`: prints the figures, writes the page, exits 1 on a miss."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from trimtab.truth import cases, gradients, llama, reinforcement, trust
from trimtab.truth.measured import Measured
from trimtab.truth.page import Findings, page
from trimtab.truth.world import World

Case = TypeVar("Case")
Found = TypeVar("Found", bound=Measured)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trimtab.truth", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/truth.md"))
    out = parser.parse_args().out
    findings = measure(World.draw(seed=0))
    out.write_text(page(findings), encoding="utf-8")
    print(f"written: {out}")
    missed = findings.missed()
    if missed:
        print("missed its bound: " + ", ".join(missed))
    return 1 if missed else 0


def measure(world: World) -> Findings:
    """Everything on the page, printed as it is found."""
    return Findings(
        recorded=_each("recorded feedback", cases.CASES, lambda case: cases.solve(case, world)),
        enumerated=_each(
            "reinforcement learning, all responses",
            reinforcement.ENUMERATED,
            lambda case: reinforcement.solve_enumerated(case, world),
        ),
        drawn=_each(
            "reinforcement learning, drawn responses",
            reinforcement.DRAWN,
            lambda case: reinforcement.solve_drawn(case, world),
        ),
        gradients=_each(
            "drawn gradients: off by, largest z, chance",
            enumerate(gradients.GRADIENTS),
            lambda case: gradients.agreement(case[1], world, seed=case[0]),
        ),
        equalities=_each(
            "equal gradients: difference, bound",
            [lambda: gradients.ppo_begins_as_a2c(world), trust.fisher_on_a_llama],
            lambda make: make(),
        ),
        steps=_each(
            "TRPO: bound, KL, reported, gain, best",
            trust.STEPS,
            lambda parameters: trust.first_step(parameters, world),
        ),
        llama=_each("a Llama on pairs", [world], llama.end_to_end)[0],
        llamas=_each(
            "a Llama on its own answers", llama.ONLINE, lambda case: llama.learn_online(case, world)
        ),
    )


def _each(title: str, given: Iterable[Case], find: Callable[[Case], Found]) -> list[Found]:
    print(title)
    found = []
    for case in given:
        start = time.perf_counter()
        found.append(find(case))
        seconds = f"{time.perf_counter() - start:.1f} s"
        miss = "MISSED" if found[-1].missed else ""
        print("   ", "  ".join([*found[-1].cells, seconds, miss]).rstrip(), flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
