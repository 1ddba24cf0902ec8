"""Training steps a second in environments: trimtab against Stable-Baselines3 and CleanRL, turn by turn.

    python -m benchmarks.control [--cleanrl FOLDER] [--rounds 3] [--document]

Every side trains with PPO, the same settings and networks, and one thread: with the defaults of CleanRL, on
CartPole with those of Stable-Baselines3 too. FOLDER holds CleanRL's ppo.py and ppo_continuous_action.py
(github.com/vwxyzjn/cleanrl, folder cleanrl), which are run as they are; without it CleanRL is left out.
Imports and the making of environments are not counted. Ratios are medians over the rounds, with their range.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SB3_DEFAULTS = {
    "envs": 1, "steps": 2048, "epochs": 10, "minibatch_size": 64, "gamma": 0.99, "lam": 0.95,
    "learning_rate": 3e-4, "clip": 0.2, "entropy_bonus": 0.0, "value_weight": 1.0, "whiten_minibatches": True,
}  # fmt: skip
DISCRETE = {
    "envs": 4, "steps": 128, "epochs": 4, "minibatch_size": 128, "gamma": 0.99, "lam": 0.95,
    "learning_rate": 2.5e-4, "schedule": "linear", "clip": 0.2, "value_clip": 0.2, "entropy_bonus": 0.01,
    "value_weight": 0.5, "whiten_minibatches": True,
}  # fmt: skip
CONTINUOUS = {
    **SB3_DEFAULTS, "schedule": "linear", "value_clip": 0.2, "value_weight": 0.5,
    "normalise_observations": True, "normalise_rewards": True,
}  # fmt: skip
AS_SB3 = "--num-envs 1 --num-steps 2048 --num-minibatches 32 --update-epochs 10 --learning-rate 3e-4"
TASKS: dict[str, tuple[str, dict[str, Any], str]] = {  # name -> environment, settings, CleanRL's words
    "CartPole-v1, SB3's defaults": (
        "CartPole-v1",
        {**SB3_DEFAULTS, "total_steps": 16_384},
        f"ppo.py {AS_SB3} --no-anneal-lr --no-clip-vloss --ent-coef 0",
    ),
    "CartPole-v1, CleanRL's defaults": ("CartPole-v1", {**DISCRETE, "total_steps": 32_768}, "ppo.py"),
    "Pendulum-v1, CleanRL's defaults": (
        "Pendulum-v1",
        {**CONTINUOUS, "total_steps": 16_384},
        "ppo_continuous_action.py",
    ),
    "HalfCheetah-v5, CleanRL's defaults": (
        "HalfCheetah-v5",
        {**CONTINUOUS, "total_steps": 16_384},
        "ppo_continuous_action.py",
    ),
}
HEADINGS = {
    "en": "| environment | trimtab, steps/s | SB3 | ratio | CleanRL | ratio |",
    "zh": "| 环境与设置 | trimtab，步/秒 | SB3 | 倍数 | CleanRL | 倍数 |",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# CleanRL pins Gymnasium 0.29: 1.x wants a wrapper's observation space named. TensorBoard is left out.
SHIM = """
import runpy, sys, types, gymnasium
board = types.ModuleType("torch.utils.tensorboard")
board.SummaryWriter = type("SummaryWriter", (), {"__init__": lambda *a, **k: None,
    **{n: (lambda *a, **k: None) for n in ("add_scalar", "add_text", "close")}})
sys.modules["torch.utils.tensorboard"] = board
wrap = gymnasium.wrappers.TransformObservation
gymnasium.wrappers.TransformObservation = lambda env, f: wrap(env, f, env.observation_space)
import torch; torch.set_num_threads(1)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    """Runs every side in turn, and prints a table of medians with the range of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cleanrl", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--document", action="store_true", help="write the table into docs/, too")
    parser.add_argument("--side", choices=("trimtab", "sb3"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(one(options.side, options.tasks[0])))
        return
    sides = ["trimtab", "sb3", *(["cleanrl"] if options.cleanrl else [])]
    lines = ["|---|---:|---:|---:|---:|---:|"]
    print("\n".join([HEADINGS["en"], *lines]))
    for task in options.tasks:
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side in sides:
                rates[side].append(rate(side, task, options.cleanrl))
        lines.append(row(task, rates))
        print(lines[-1], flush=True)
    if options.document:
        document(lines)


def document(lines: list[str]) -> None:
    """Writes the table into docs/, in both languages."""
    from benchmarks.document import fill

    def body(name: str, language: str) -> str | None:
        return "\n".join([HEADINGS[language], *lines]) if name == "control_speed" else None

    fill(body)


def row(task: str, rates: dict[str, list[float]]) -> str:
    """| CartPole-v1 | 25,000 | 4,000 | 6.2 (6.0 to 6.4) | ..."""
    cells = [task, f"{statistics.median(rates['trimtab']):,.0f}"]
    for side in ("sb3", "cleanrl"):
        if side not in rates:
            cells += ["–", "–"]
            continue
        ratios = sorted(a / b for a, b in zip(rates["trimtab"], rates[side], strict=True))
        cells.append(f"{statistics.median(rates[side]):,.0f}")
        cells.append(f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})")
    return "| " + " | ".join(cells) + " |"


def rate(side: str, task: str, cleanrl: Path | None) -> float:
    """Steps a second of one side, in a process of its own."""
    if side == "cleanrl":
        assert cleanrl is not None
        env, settings, given = TASKS[task]
        script, *more = given.split()
        words = ["-c", SHIM, str(cleanrl / script), "--env-id", env, "--no-cuda", *more]
        words += ["--total-timesteps", str(settings["total_steps"])]
        return float(re.findall(r"SPS: (\d+)", output(words))[-1])
    words = ["-m", "benchmarks.control", "--side", side, "--tasks", task]
    return float(json.loads(output(words).splitlines()[-1]))


def output(words: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=os.environ | ONE_THREAD, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout


def one(side: str, task: str) -> float:
    """Steps a second of this process."""
    import torch
    from benchmarks.control_peers import train_sb3, train_trimtab

    from trimtab.allocator import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    train = train_trimtab if side == "trimtab" else train_sb3
    env, settings, _ = TASKS[task]
    trained = train("ppo", {**settings, "env": env}, 0)
    return trained.steps / trained.seconds


if __name__ == "__main__":
    main()
