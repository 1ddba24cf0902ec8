"""Film-review sentences with human labels (Pang & Lee 2005), cut into prompts and responses.

The prompt is the first three to six words of a sentence, the response is the rest, and the human's label of
the whole sentence says whether the response is desirable. The split into train and held-out is decided by the
first three words, with which every prompt begins: a held-out prompt, and every sentence that opens like it,
is absent from the training half.
"""

import gzip
import hashlib
import html
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from trimtab.errors import UserError, nearest
from trimtab.feedback.records import Record

Split = Literal["train", "held_out"]

SHORTEST = 5  # words of the shortest sentence used: an opening of three and a response of two
OPENING = 3  # words that decide the split
LONGEST_PROMPT = 6
HELD_OUT_PERCENT = 15

# The file holds a few characters of Windows-1252 that were read as Latin-1.
_WINDOWS = str.maketrans({"\x91": "'", "\x96": "--", "\x97": "--"})


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a film review, and whether a human called it positive. `line` counts from 1."""

    text: str
    positive: bool
    line: int


def clean(text: str) -> str:
    """The text without what its way through the web left: HTML, stray control characters, double spaces."""
    text = html.unescape(re.sub(r"</?\w*>", "", text.translate(_WINDOWS)))
    return re.sub(r"[\s\x00-\x1f]+", " ", text).strip()


def normalised(text: str) -> str:
    """Lower-case words alone, so that a sentence in quotes equals the same sentence without them."""
    return " ".join(re.findall(r"\w+", text.lower()))


@cache
def sentences() -> tuple[Sentence, ...]:
    """All 10,662 sentences in the order of the file, cleaned. Half of them are positive."""
    packed = files("trimtab.examples.reviews").joinpath("sentences.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).decode("utf-8").splitlines()]
    return tuple(Sentence(clean(row["text"]), row["positive"], n) for n, row in enumerate(rows, start=1))


def prompt_and_response(text: str) -> tuple[str, str]:
    """Cuts a sentence after 3 to 6 words, chosen by a hash of its text; the response keeps its leading space.

    Raises ValueError for a sentence of fewer than five words: the response would have fewer than two.
    """
    words = text.split(" ")
    if len(words) < SHORTEST:
        raise ValueError(f"a sentence of {len(words)} words is too short to cut; it needs {SHORTEST}")
    lengths = range(OPENING, min(LONGEST_PROMPT, len(words) - 2) + 1)
    cut = lengths[_hash(text) % len(lengths)]
    return " ".join(words[:cut]), " " + " ".join(words[cut:])


def split_of(text: str) -> Split:
    """The half that a sentence or prompt belongs to, from a hash of its first three words."""
    opening = " ".join(text.split(" ")[:OPENING])
    return "held_out" if _hash(opening) % 100 < HELD_OUT_PERCENT else "train"


@cache
def split_sentences(split: Split) -> tuple[Sentence, ...]:
    """The sentences of one half: of five words or more, the first of each normalised text."""
    if split not in ("train", "held_out"):
        raise UserError(f"the reviews have no split {split!r}; {nearest(split, ('train', 'held_out'))}")
    first: dict[str, Sentence] = {}
    for sentence in sentences():
        if len(sentence.text.split(" ")) >= SHORTEST:
            first.setdefault(normalised(sentence.text), sentence)
    return tuple(sentence for sentence in first.values() if split_of(sentence.text) == split)


def load(split: Split) -> list[Record]:
    """One half as thumbs: prompt, response, and the human's label."""
    records = []
    for sentence in split_sentences(split):
        prompt, response = prompt_and_response(sentence.text)
        records.append(
            Record(
                kind="thumbs",
                prompt=prompt,
                responses=(response,),
                desirable=sentence.positive,
                source=f"sentences.jsonl:{sentence.line}",
            )
        )
    return records


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")
