"""`python -m trimtab.truth [--out docs/truth.md]`: prints the figures, writes the page, exits 1 on a miss."""

import argparse
import sys
from pathlib import Path

from trimtab.truth.cases import BOUND, CASES, solve
from trimtab.truth.llama import BOUND as LLAMA_BOUND
from trimtab.truth.llama import end_to_end
from trimtab.truth.page import figure, page
from trimtab.truth.world import World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trimtab.truth", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/truth.md"))
    out = parser.parse_args().out
    world = World.draw(seed=0)
    line = "{:40} {:42} {:>9} {:>8}"
    print(line.format("method", "optimum known from", "distance", "seconds"))
    results = []
    for case in CASES:
        result = solve(case, world)
        results.append(result)
        seconds = f"{result.seconds:.1f}"
        print(line.format(case.title, case.known_from, figure(result.distance), seconds), flush=True)
    llama = end_to_end(world)
    print(f"dpo on a Llama of {llama.parameters:,} parameters: {llama.before:.4f} -> {llama.after:.4f}")
    out.write_text(page(results, llama), encoding="utf-8")
    print(f"written: {out}")
    missed = [r.case.title for r in results if r.distance > BOUND]
    missed += ["end to end"] if llama.after > LLAMA_BOUND else []
    if missed:
        print("too far from the optimum: " + ", ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
