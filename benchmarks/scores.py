"""What the presets reach in environments, beside Stable-Baselines3 with the same settings.

    make scores         all tasks; hours on two cores: see --tasks and --seeds
    python -m benchmarks.scores --tasks CartPole-v1:ppo Pendulum-v1:ppo --seeds 3

Every run is a line in OUT/results.jsonl, and is not repeated. After training, 30 episodes are played with the
most likely actions and 30 with drawn ones, in states that neither side has seen. The table goes into
docs/benchmarks.md. TRPO's peer is sb3-contrib. Where a seed takes over five minutes, three seeds are run.
"""

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.compare.statistics import mean_interval
from trimtab.presets import preset

# environment:method -> the return that is asked for, seeds of trimtab, seeds of the peer
TASKS = {
    "CartPole-v1:ppo": (475, 10, 10),
    "CartPole-v1:trpo": (475, 10, 10),
    "CartPole-v1:a2c": (475, 10, 10),
    "CartPole-v1:reinforce": (475, 10, 0),
    "Pendulum-v1:ppo": (-200, 10, 10),
    "Acrobot-v1:ppo": (-90, 10, 10),
    "Acrobot-v1:trpo": (-90, 10, 10),
    "LunarLander-v3:ppo": (200, 10, 3),
    "HalfCheetah-v5:ppo": (1600, 10, 3),
    "Hopper-v5:ppo": (2000, 10, 3),
    "Hopper-v5:trpo": (2500, 3, 3),
}
EPISODES = 30
FIRST_SEED = {"trimtab": 100, "sb3": 0}  # the settings were tried out on small seeds of trimtab
HEADINGS = {
    "en": ("environment", "method", "steps", "asked", "trimtab", "drawn", "SB3", "drawn"),
    "zh": ("环境", "方法", "步数", "要求", "trimtab", "随机动作", "SB3", "随机动作"),
}


def main() -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--sides", nargs="+", default=["trimtab", "sb3"], choices=["trimtab", "sb3"])
    parser.add_argument("--seeds", type=int, default=10, help="at most so many")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("runs/scores"))
    parser.add_argument("--document", action="store_true", help="write the table into docs/, too")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.jsonl"
    done = {(r["side"], r["task"], r["seed"]) for r in results(file)}
    left = [run for run in runs(options.tasks, options.sides, options.seeds) if run not in done]
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that follow
    with ProcessPoolExecutor(options.jobs) as pool, file.open("a", encoding="utf-8") as lines:
        for row in pool.map(one, *zip(*left, strict=True)) if left else ():
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            print(row, flush=True)
    print(table(results(file), "en"))
    if options.document:
        from benchmarks.document import fill

        fill(lambda name, language: table(results(file), language) if name == "scores" else None)


def runs(tasks: list[str], sides: list[str], most: int) -> Iterator[tuple[str, str, int]]:
    """(side, task, seed) of everything that is asked for."""
    for task in tasks:
        for side in sides:
            for seed in range(min(most, TASKS[task][1 + (side == "sb3")])):
                yield side, task, FIRST_SEED[side] + seed


def one(side: str, task: str, seed: int) -> dict[str, Any]:
    """Trains and plays; the line of the results."""
    import torch
    from benchmarks.control_peers import train_sb3, train_trimtab

    from trimtab.allocator import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    env, method = task.split(":")
    train = train_trimtab if side == "trimtab" else train_sb3
    trained = train(method, {**preset(method, env), "env": env}, seed)
    means = [float(np.mean(trained.play(EPISODES, best))) for best in (True, False)]
    return {
        "side": side,
        "task": task,
        "seed": seed,
        "best": means[0],
        "drawn": means[1],
        "seconds": round(trained.seconds, 1),
        "steps": trained.steps,
    }


def results(file: Path) -> list[dict[str, Any]]:
    """All lines so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(rows: list[dict[str, Any]], language: str) -> str:
    """Means over seeds with 95 % bootstrap intervals, as Markdown."""
    lines = ["| " + " | ".join(HEADINGS[language]) + " |", "|---|---" + "|---:" * 6 + "|"]
    for task, (asked, _, _) in TASKS.items():
        env, method = task.split(":")
        steps = preset(method, env)["total_steps"]
        cells = [env, method, f"{steps:,}", f"≥ {asked}"]
        for side in ("trimtab", "sb3"):
            of_side = [row for row in rows if (row["side"], row["task"]) == (side, task)]
            cells += _cells(of_side)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["–"] * 2
    best = mean_interval([row["best"] for row in rows])
    interval = f" ({best.low:.0f} to {best.high:.0f}; {best.n})" if best.n > 1 else f" ({best.n})"
    return [f"{best.mean:.0f}{interval}", f"{np.mean([row['drawn'] for row in rows]):.0f}"]


if __name__ == "__main__":
    main()
