"""What each technique saves, alone: seconds of a training step with it and without, turn by turn.

    python -m benchmarks.techniques [--jobs dpo] [--models 8m 80m] [--lora-ranks 0 16] [--precisions fp32]

The steps are those of `benchmarks.language`, all on the same rows. Each technique that `--without` knows is
left out in every other step, so that both ways see the same machine. Seconds are medians, and so are the
ratios of neighbouring steps, with their range. What a run has no use for (adapters' techniques without
adapters, those of bf16 in fp32) is not in the table.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import language
from benchmarks import language_work as work

from trimtab.policies.trunk import TECHNIQUES

HEADINGS = {
    "en": "| step | technique | with (s) | without (s) | times faster |",
    "zh": "| 步 | 技术 | 用（秒） | 不用（秒） | 快几倍 |",
}
RULE = "|---|---|---:|---:|---:|"
OF_BF16, OF_ADAPTERS = {"rounded-sizes"}, {"fused-lora", "frozen-head"}
WARM_UP = 2


def main() -> None:
    """Prints a row for every technique as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", nargs="+", default=["dpo"], choices=work.OFFLINE)
    parser.add_argument("--models", nargs="+", default=["8m"], choices=list(work.SHAPES))
    parser.add_argument("--data", nargs="+", default=["dialogues"], choices=list(work.DATA))
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--lora-ranks", nargs="+", type=int, default=[0, 16], help="0 trains all weights")
    parser.add_argument("--batch", type=int, default=8, help="pieces of feedback in a step")
    parser.add_argument("--rounds", type=int, default=5, help="steps with and without each technique")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sources", type=Path, default=work.SOURCES)
    parser.add_argument("--out", type=Path, default=Path("runs/language"))
    parser.add_argument("--document", action="store_true", help="write the table into docs/, too")
    options = parser.parse_args()
    work.make_models(options.out, options.models, options.sources)
    print(HEADINGS["en"], RULE, sep="\n", flush=True)
    kinds = product(options.jobs, options.models, options.data, options.precisions, options.lora_ranks)
    lines = [line for kind in kinds for line in measured(options, kind)]
    if options.document:
        from benchmarks.document import fill

        def body(name: str, of: str) -> str | None:
            return "\n".join([HEADINGS[of], RULE, *lines]) if name == "techniques" else None

        fill(body)


def measured(options: argparse.Namespace, kind: tuple[str, str, str, str, int]) -> Iterator[str]:
    """The rows of one kind of step: job, model, data, precision and rank of adapters."""
    import torch

    from trimtab.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    *described, rank = kind
    idle = (set() if rank else OF_ADAPTERS) | (set() if "bf16" in kind else OF_BF16)
    techniques = [name for name in TECHNIQUES if name not in idle]
    meter = work.Meter(options.device)
    training = started_for(options, kind, WARM_UP + 2 * options.rounds * len(techniques), meter)
    steps, trunk = iter(training), training.policy.trunk
    for _ in range(WARM_UP):
        next(steps)
    name = ", ".join(described) + (f", LoRA {rank}" if rank else "")
    for technique in techniques:
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for _, used in product(range(options.rounds), (True, False)):
            seconds[used].append(step(steps, trunk, [] if used else [technique], meter))
        ours, theirs = (statistics.median(seconds[used]) for used in (True, False))
        ratios = sorted(b / a for a, b in zip(seconds[True], seconds[False], strict=True))
        faster = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        line = f"| {name} | {technique} | {ours:.3g} | {theirs:.3g} | {faster} |"
        print(line, flush=True)
        yield line


def started_for(
    options: argparse.Namespace, kind: tuple[str, str, str, str, int], steps: int, meter: work.Meter
) -> Any:
    """A training of so many steps, all on the same rows."""
    from benchmarks.language_trimtab import started
    from transformers import AutoTokenizer

    *described, rank = kind
    words = {"batch": options.batch, "lora-rank": rank, "threads": options.threads, "steps": steps}
    given = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    given += ["--out", str(options.out), "--device", options.device]
    turn = replace(language.turn_of(language.options_of(given), *described), side="trimtab")
    tokenizer = AutoTokenizer.from_pretrained(turn.folder)
    rows = work.rows_of(replace(turn, steps=1), tokenizer, options.sources)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRIMTAB_CACHE"] = cache
        return started(turn, meter, rows)


def step(steps: Iterator[Any], trunk: Any, left_out: list[str], meter: work.Meter) -> float:
    """Seconds of the next step without these techniques, which are there again afterwards."""
    before = {attribute: getattr(trunk, attribute) for attribute in TECHNIQUES.values()}
    trunk.without(left_out)
    start = meter.now()
    next(steps)
    seconds = meter.now() - start
    for attribute, value in before.items():
        setattr(trunk, attribute, value)
    return seconds


if __name__ == "__main__":
    main()
