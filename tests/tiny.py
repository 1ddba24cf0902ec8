"""What a user brings, small: a model's folder, and files of feedback whose letters its tokenizer knows."""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.models import causal_model, letter_tokenizer

Row = dict[str, Any]

NOUNS = ("film", "cast", "plot", "end", "music", "scene", "idea", "story")
PROMPTS = tuple(f"the {noun} is" for noun in NOUNS)
GOOD, BAD = " good and a joy.", " bad and a bore."
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
_FOLDERS = TemporaryDirectory(prefix="trimtab-tests-")


@cache
def model_folder(seed: int = 0, **settings: Any) -> str:
    """A folder with a Llama of two layers and its tokenizer, made once in a process."""
    folder = Path(_FOLDERS.name) / f"model-{seed}-{len(list(Path(_FOLDERS.name).iterdir()))}"
    causal_model(seed=seed, **settings).save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return str(folder)


def pairs(prompts: Sequence[str] = PROMPTS) -> list[Row]:
    return [{"prompt": p, "chosen": GOOD, "rejected": BAD} for p in prompts]


def thumbs(prompts: Sequence[str] = PROMPTS) -> list[Row]:
    return [{"prompt": p, "completion": r, "label": r == GOOD} for p in prompts for r in (GOOD, BAD)]


def demonstrations(prompts: Sequence[str] = PROMPTS) -> list[Row]:
    return [{"prompt": p, "completion": GOOD} for p in prompts]


def scores(prompts: Sequence[str] = PROMPTS) -> list[Row]:
    return [{"prompt": p, "response": r, "score": s} for p in prompts for r, s in ((GOOD, 2.0), (BAD, -1.0))]


def write_jsonl(path: Path, rows: Iterable[Row]) -> str:
    """Writes the rows to a file; returns its name as the command line takes it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_jsonl(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
