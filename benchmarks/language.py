"""Speed and memory of training language models: trimtab beside TRL, turn by turn.

    python -m benchmarks.language [--jobs dpo sft ...] [--models 8m 50m 80m] [--data dialogues long short]

Both sides train the same random weights on the same rows in the same batches, with AdamW on float32 weights
at a constant rate, each in a process of its own. TRL runs with its defaults, but without gradient
checkpointing. PPO, which TRL 1.16 no longer has, runs against a plain loop over transformers
(language_plain.py).

Seconds are those from the end of the first step, a warm-up, to the end of the last. trimtab computes the
reference's log-probs once before training, TRL in each step: they count here too, by the number of steps,
without the cache on disk. Loading, tokenising and imports are left out. Memory is the process's peak less
what it held before the model was loaded; on CUDA what torch's allocator held at most.

Samples are pairs, thumbs, demonstrations or answers; tokens those of prompt and response that are trained
on. Of peak: the operations that plain computation would take (see `language_work.operations`) in these
seconds, as a share of what the machine does in matrix products of 2048 x 2048 in that precision: the best
of some just after these trainings, when they had the same neighbours. Speed and memory are TRL's seconds and
bytes by trimtab's: over 1 is in trimtab's favour.

The losses of all steps of the offline jobs are compared: the last column is the largest difference, absolute
or relative, whichever is less, and marked where it is above 0.001 in fp32, as it must not be. ORPO's
likelihood differs by definition (docs/truth.md): its mean log odds are compared, in the first step only.
KTO's mismatched pairs are TRL's on both sides. Every process leaves a line in OUT/results.jsonl.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import language_work as work
from benchmarks.language_work import Turn

SIDES = ("trimtab", "trl")
TOLERANCE = 1e-3
HEADINGS = {
    "en": (
        "job, model, data, precision", "trimtab: samples/s", "tokens/s", "of peak", "MB",
        "TRL: samples/s", "tokens/s", "of peak", "MB", "speed", "memory", "losses differ by",
    ),
    "zh": (
        "任务、模型、数据、精度", "trimtab：样本/秒", "词元/秒", "占峰值", "MB",
        "TRL：样本/秒", "词元/秒", "占峰值", "MB", "速度倍数", "内存倍数", "损失之差",
    ),
}  # fmt: skip
Results = dict[str, list[dict[str, Any]]]  # side -> one result a round


def main() -> None:
    """Runs every combination, and prints its row of the table as soon as it is measured."""
    options = options_of(sys.argv[1:])
    if options.turn:
        print(json.dumps(one(Turn(**json.loads(options.turn)), options.sources)))
        return
    work.make_models(options.out, options.models, options.sources)
    rows: list[list[str]] = []
    print("\n".join(heading("en")), flush=True)
    for job, model, data, precision in product(
        options.jobs, options.models, options.data, options.precisions
    ):
        turn = turn_of(options, job, model, data, precision)
        results: Results = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side in SIDES:
                results[side].append(measured(replace(turn, side=side), options))
        name = f"{job} (plain loop)" if job == "ppo" else job
        rows.append(row(f"{name}, {model}, {data}, {precision}", results))
        print(line(rows[-1]), flush=True)
    if options.document:
        document(rows)


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    jobs = (*work.OFFLINE, *work.ONLINE)
    parser.add_argument("--jobs", nargs="+", default=list(jobs), choices=jobs)
    parser.add_argument("--models", nargs="+", default=["8m"], choices=list(work.SHAPES))
    parser.add_argument("--data", nargs="+", default=["dialogues"], choices=list(work.DATA))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps, or collections of answers")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="pieces of feedback in a step")
    parser.add_argument("--max-length", type=int, default=512, help="longer rows are left out")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="of trimtab and of the plain loop")
    parser.add_argument("--prompts", type=int, default=8, help="in a collection of answers")
    parser.add_argument("--samples", type=int, default=8, help="answers to a prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/language"))
    parser.add_argument("--sources", type=Path, default=work.SOURCES, help="the folder of reviews and demos")
    parser.add_argument("--document", action="store_true", help="write the table into docs/, too")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error("--steps must be 2 or more: the first is a warm-up")
    if "7b" in options.models and not options.lora_rank:
        parser.error("--models 7b needs --lora-rank: all its weights are too many to train on one GPU")
    return options


def turn_of(options: argparse.Namespace, job: str, model: str, data: str, precision: str) -> Turn:
    same = ("steps", "batch", "max_length", "batch_tokens", "prompts", "samples", "new_tokens", "lora_rank")
    rest = {name: getattr(options, name) for name in (*same, "threads", "device")}
    return Turn("", job, model, data, precision, **rest, out=str(options.out))


def measured(turn: Turn, options: argparse.Namespace) -> dict[str, Any]:
    """The result of a process of its own, or what it ended with; added to results.jsonl."""
    words = ["--turn", json.dumps(asdict(turn)), "--sources", str(options.sources)]
    found = {"turn": asdict(turn), **child(words, turn.threads)}
    with (options.out / "results.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(found) + "\n")
    if "error" in found:
        print(f"{turn.side}, {turn.job}, {turn.model}: {found['error']}", file=sys.stderr)
    return found


def child(words: list[str], threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        settings = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "TRIMTAB_CACHE": cache,
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
        command = [sys.executable, "-m", "benchmarks.language", *words]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"error": f"status {done.returncode}: {last}"}  # -9: the system ended it for want of memory
    return dict(json.loads(done.stdout.splitlines()[-1]))


def one(turn: Turn, sources: Path) -> dict[str, Any]:
    """What this process measures."""
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(turn.threads)
    import_module("transformers.models.qwen2.modeling_qwen2")  # a library, not the model's memory
    rows = work.rows_of(turn, AutoTokenizer.from_pretrained(turn.folder), sources)
    meter = work.Meter(turn.device)
    model = side_of(turn)(turn, meter, rows)
    return {**meter.result(turn, model), "peak": matrix_product(turn.precision, turn.device)}


def matrix_product(precision: str, device: str, seconds: float = 2.0) -> float:
    """Operations a second of products of 2048 x 2048 in this precision: the best that these seconds saw."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
    meter, times = work.Meter(device), list[float]()
    while sum(times) < seconds:
        start = meter.now()
        a @ b
        times.append(meter.now() - start)
    return 2 * 2048**3 / min(times)


def side_of(turn: Turn) -> Any:
    """The function that trains."""
    if turn.side == "trimtab":
        from benchmarks.language_trimtab import run

        from trimtab.allocator import keep_freed_memory

        keep_freed_memory()
        return run
    if turn.job == "ppo":
        from benchmarks.language_plain import run
    else:
        from benchmarks.language_trl import run
    return run


def row(label: str, results: Results) -> list[str]:
    """The cells of a combination: medians over the rounds, and ratios with their range."""
    cells = [label]
    peak = max((result.get("peak", 0.0) for side in SIDES for result in results[side]), default=0.0)
    for side in SIDES:
        if errors := [result["error"] for result in results[side] if "error" in result]:
            cells += [errors[0][:40].replace("|", "/"), "–", "–", "–"]
            continue
        first = results[side][0]
        seconds, memory = (
            statistics.median(r[name] for r in results[side]) for name in ("seconds", "memory")
        )
        cells += [f"{first['samples'] / seconds:,.1f}", f"{first['tokens'] / seconds:,.0f}"]
        cells += [f"{first['operations'] / seconds / peak:.0%}", f"{memory / 1e6:,.0f}"]
    if any("error" in result for side in SIDES for result in results[side]):
        return [*cells, "–", "–", "–"]
    return [*cells, ratio("seconds", results), ratio("memory", results), difference(results)]


def ratio(name: str, results: Results) -> str:
    """1.8 (1.7 to 1.9)"""
    pairs = zip(*(results[side] for side in SIDES), strict=True)
    ratios = sorted(theirs[name] / ours[name] for ours, theirs in pairs)
    several = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{several}"


def difference(results: Results) -> str:
    """How far the losses of all steps are apart at most; the tokens must be the same to the last."""
    ours, theirs = (results[side][0] for side in SIDES)
    if ours["tokens"] != theirs["tokens"]:
        return f"other tokens: {ours['tokens']:.0f}, {theirs['tokens']:.0f}"
    if not ours["losses"]:
        return "–"
    pairs = list(zip(ours["losses"], theirs["losses"], strict=True))
    pairs = pairs[:1] if ours["turn"]["job"] == "orpo" else pairs  # the same weights meet only there
    apart = [abs(a - b) / max(1.0, abs(a)) for a, b in pairs]
    most = max(apart, key=lambda value: (math.isnan(value), value))
    bad = ours["turn"]["precision"] == "fp32" and not most <= TOLERANCE
    return f"{most:.0e}" + " (!)" * bad


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def heading(language: str) -> list[str]:
    return [line(list(HEADINGS[language])), "|---" + "|---:" * (len(HEADINGS[language]) - 1) + "|"]


def document(rows: list[list[str]]) -> None:
    """Writes the table into the block `language` of docs/, in both languages."""
    from benchmarks.document import fill

    def body(name: str, language: str) -> str | None:
        return "\n".join([*heading(language), *map(line, rows)]) if name == "language" else None

    fill(body)


if __name__ == "__main__":
    main()
