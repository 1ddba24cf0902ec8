"""`trimtab train ppo` and its like on a tiny model: the words of the command line, and what it leaves."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests import tiny

PLAIN = ["--precision", "fp32", "--device", "cpu"]
SHORT = ["--refreshes", "2", "--prompts", "4", "--samples", "2", "--max-new-tokens", "8"]
JOY = '''
import json
from pathlib import Path

def joy(prompts, responses):
    """How many letters o; what it was asked, it writes down."""
    scores = [float(response.count("o")) for response in responses]
    with (Path(__file__).parent / "asked.jsonl").open("a") as file:
        file.write(json.dumps([prompts, responses, scores]) + "\\n")
    return scores
'''


def prepared(folder: Path) -> Path:
    """The folder with prompts.jsonl, and the reward joy in r.py."""
    (folder / "r.py").write_text(JOY)
    tiny.write_jsonl(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in tiny.PROMPTS])
    tiny.model_folder()
    return folder


def words(method: str, folder: Path, *options: str, out: str = "out", reward: str = "") -> list[str]:
    """A short run into `out`; later options win."""
    reward = reward or f"{folder}/r.py:joy"
    files = ["--data", f"{folder}/prompts.jsonl", "--out", f"{folder}/{out}", "--reward", reward]
    rate = "--critic-learning-rate" if method == "trpo" else "--learning-rate"
    return ["train", method, "--model", tiny.model_folder(), *files, *SHORT, *PLAIN, rate, "1e-3", *options]


def reward_model_words(folder: Path, out: str, *options: str) -> list[str]:
    pairs = tiny.write_jsonl(folder / "pairs.jsonl", tiny.pairs())
    files = ["--data", pairs, "--out", f"{folder}/{out}", "--steps", "3"]
    return [
        *("train", "reward_model", "--model", tiny.model_folder(), *files),
        *(*PLAIN, "--learning-rate", "1e-3", *options),
    ]


def curve(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, without what depends on the clock."""
    clock = ("seconds", "tokens_per_second")
    rows = tiny.read_jsonl(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


def scores(folder: Path) -> list[float]:
    return [row["score"] for row in curve(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of all files below the folder, each weight by its file and name."""
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{f.relative_to(folder)} {name}": w for f in files for name, w in load_file(f).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
