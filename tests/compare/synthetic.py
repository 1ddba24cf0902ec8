"""Comparison folders with made-up numbers, in the shape that `trimtab compare` writes."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_TEXT = """a an the film story moving funny dull slow bright heart cast script scene never always quite almost
charming tedious clever , . and but with of in its that director performance ending laughs"""
WORDS = _TEXT.split()
OPENINGS = ("the director", "a smart , funny", "it 's hard to", "an hour in , the", "for all its")


def write_about(out: Path, rewards: Sequence[str] = ("gold", "proxy"), **changes: Any) -> None:
    """Writes comparison.json."""
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "name": "film reviews",
        "data": {"train_pairs": 4000, "held_out_prompts": 200, "train_thumbs": 8000},
        "base": "reviews-4m",
        "budget": {"examples": 4000, "batch_size": 32, "epochs": 1},
        "rewards": list(rewards),
        "primary_reward": rewards[0],
        "evaluation": {"prompts": 200, "temperature": 1.0, "max_new_tokens": 32},
        "stages": [
            {"name": "sft", "seconds": 41.5, "metrics": {"held_out_perplexity": 48.1}},
            {
                "name": "reward model",
                "seconds": 12.0,
                "metrics": {"held_out_pair_accuracy": {"mean": 0.71, "low": 0.67, "high": 0.75, "n": 480}},
            },
        ],
        "versions": {"trimtab": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"cores": 2, "memory_gb": 8},
        "created": "2025-01-01T12:00:00+00:00",
    }
    (out / "comparison.json").write_text(json.dumps(about | changes))


def add_run(
    out: Path,
    method: str,
    scores: Sequence[float | dict[str, float]],
    *,
    strength: float | None = None,
    name: str = "beta",
    seed: int = 0,
    kl: Sequence[float] | None = None,
    responses: Sequence[str] | None = None,
    prompts: Sequence[Any] | None = None,
    losses: Sequence[float] = (),
    parameters: str = "",
) -> None:
    """Appends one finished run; scores are gold scores, or rewards by name, one for each prompt."""
    key = "/".join(filter(None, [method, strength and f"{name}={strength}", parameters, f"seed={seed}"]))
    folder = out / "runs" / key.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "prompt": prompts[i] if prompts else f"prompt {i}",
            "response": responses[i] if responses else f"answer {i} .",
            "rewards": score if isinstance(score, dict) else {"gold": score},
            "kl": kl[i] if kl else None,
            "tokens": len(responses[i].split()) if responses else 4 + i % 3,
            "ended": True,
        }
        for i, score in enumerate(scores)
    ]
    _write_lines(folder / "evaluation.jsonl", rows)
    curve = [
        {"step": s, "loss": loss, "margin": 3 - 4 * loss, "seconds": s * 0.1} for s, loss in enumerate(losses)
    ]
    if curve:
        _write_lines(folder / "metrics.jsonl", curve)
    result = {
        "key": key,
        "status": "done",
        "error": None,
        "method": method,
        "strength": None if strength is None else {"name": name, "value": strength},
        "seed": seed,
        "folder": str(folder.relative_to(out)),
        "config": {"method": {"name": method, name: strength}, "seed": seed, "learning_rate": 5e-4},
        "seconds": {"train": 10.0 + seed, "evaluate": 2.0},
        "peak_memory_mb": 512.0,
        "metrics": {},
    }
    _append(out, result)


def add_failure(out: Path, method: str, error: str, *, strength: float = 0.1, seed: int = 0) -> None:
    """Appends one failed run."""
    result = {
        "key": f"{method}/beta={strength}/seed={seed}",
        "status": "failed",
        "error": error,
        "method": method,
        "strength": {"name": "beta", "value": strength},
        "seed": seed,
        "folder": f"runs/{method}",
        "config": {},
        "seconds": {},
    }
    _append(out, result)


def write_film_reviews(
    out: Path,
    *,
    methods: Sequence[str] = ("dpo", "ipo", "kto", "orpo", "dpo_kl", "score_weighted"),
    strengths: Sequence[float] = (0.03, 0.1, 0.3, 1.0),
    seeds: int = 3,
    prompts: int = 200,
    rewards: Sequence[str] = ("gold", "proxy"),
) -> None:
    """A comparison as the built-in example might give it: frontiers that bend where the proxy is gamed."""
    rng = random.Random(0)
    write_about(out, rewards)
    ease = [rng.gauss(0, 1) for _ in range(prompts)]
    texts = [f"{rng.choice(OPENINGS)} {rng.choice(WORDS)}" for _ in ease]

    def run(method: str, strength: float | None, *, seed: int, kl: float, push: float, gamed: float) -> None:
        golds = [1 / (1 + math.exp(-(easy + push - gamed + rng.gauss(0, 1)))) for easy in ease]
        proxies = [easy + push + 0.5 * gamed + rng.gauss(0, 1) for easy in ease]
        lengths = [rng.randint(6, 22 + int(kl / 3)) for _ in ease]
        add_run(
            out,
            method,
            [dict(zip(rewards, both, strict=False)) for both in zip(golds, proxies, strict=True)],
            strength=strength,
            seed=seed,
            kl=[kl + rng.gauss(0, 1 + kl / 2) if strength else 0.0 for _ in ease],
            responses=[" ".join(rng.choices(WORDS, k=length)) for length in lengths],
            prompts=texts,
            losses=[0.7 - s / 500 + rng.gauss(0, 0.05) for s in range(125)] if strength else (),
        )

    run("start", None, seed=0, kl=0.0, push=0.0, gamed=0.0)
    for m, method in enumerate(methods):
        for strength in strengths:
            kl = 1.3 / strength**0.75 * (1 + 0.08 * m)
            push, gamed = (1.0 - 0.09 * m) * math.log1p(kl), 0.0016 * (1 + m) * kl**2
            for seed in range(seeds):
                run(method, strength, seed=seed, kl=kl, push=push + rng.gauss(0, 0.05), gamed=gamed)


def _append(out: Path, row: dict[str, Any]) -> None:
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
