"""Records that say nearly the same, and prompts that training shares with a held-out file."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.feedback.records import Message, Prompt, Record, as_conversation
from trimtab.feedback.suspicious import duplicates

Hashes = NDArray[np.uint64]

SHINGLE = 5  # characters; they do for Chinese, which has no spaces, as well
ALIKE = 0.8  # the least Jaccard similarity of near-duplicates: shingles in both over shingles in either
# Texts that are 0.8 alike, prompts and responses, share a band in 1 - (1 - 0.8**4)**8 = 98.5 % of cases.
BANDS, ROWS = 8, 2  # rows of the prompt and as many of the responses in each band
PEERS = 8  # earlier records that one is compared with, and of those with the same band
MOST_SHINGLES = 20_000_000  # of all records; from larger files a sample of the shingles is taken
_BASE = np.uint64(1_000_003)


def plain(text: str) -> str:
    """The text without what is no difference: case, white space, and how characters are composed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def near_duplicates(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """(record, earlier record) with nearly the same prompt, responses and judgement; exact ones are left out.

    MinHash with bands (Broder 1997; Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, ch. 3) finds
    candidates, whose shingles are then compared. The time grows with the text, not with its square.
    """
    exact = {id(record) for record in duplicates(records)}
    left = [record for record in records if id(record) not in exact]
    found = []
    peers: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    signatures = np.stack([_signatures(list(map(side, left))) for side in (_prompt_text, _answers)], 1)
    for place, signature in enumerate(signatures):
        parts = signature.reshape(2, BANDS, ROWS)
        bands = [(n, parts[:, n].tobytes()) for n in range(BANDS)]
        candidates = np.array(sorted({earlier for band in bands for earlier in peers[band]}), int)
        agreement = (signatures[candidates] == signature).mean(-1).min(-1)  # of the side that agrees less
        near = [int(c) for c in candidates[np.argsort(-agreement, kind="stable")][:PEERS]]
        twin = next((c for c in near if _alike(left[place], left[c])), None)
        if twin is not None:
            found.append((left[place], left[twin]))
            continue  # its twin stands for it
        for band in bands:
            if len(peers[band]) < PEERS:
                peers[band].append(place)
    return found


def shared_prompts(train: Sequence[Record], held_out: Sequence[Record]) -> list[tuple[Record, Record]]:
    """(held-out record, record of training) with the same prompt, or without prompt the same response."""
    known = {key: record for record in reversed(train) for key in _keys(record)}
    matches = (
        (record, next((known[key] for key in _keys(record) if key in known), None)) for record in held_out
    )
    return [(record, twin) for record, twin in matches if twin is not None]


def _keys(record: Record) -> Iterator[object]:
    prompt = _plain_prompt(record.prompt)
    if any(content for _, content in prompt):
        yield prompt
    else:
        yield from (plain(response) for response in record.responses)


def _plain_prompt(prompt: Prompt) -> tuple[tuple[str, str], ...]:
    turns: tuple[Message, ...] = as_conversation(prompt)
    return tuple((turn.role, plain(turn.content)) for turn in turns)


def _alike(a: Record, b: Record) -> bool:
    """Whether prompts and responses, one by one, are near, and the judgements equal."""
    if a.source and a.source == b.source:
        return False  # turns of one conversation
    if (a.kind, a.desirable, a.ranks, len(a.responses)) != (b.kind, b.desirable, b.ranks, len(b.responses)):
        return False
    sides = [*zip(a.responses, b.responses, strict=True), (_prompt_text(a), _prompt_text(b))]
    return all(similarity(one, other) >= ALIKE for one, other in sides)


def _prompt_text(record: Record) -> str:
    return "\n".join(turn.content for turn in as_conversation(record.prompt))


def _answers(record: Record) -> str:
    return "\n".join(record.responses)


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of two texts' shingles, from 0 to 1."""
    if a == b:
        return 1.0
    one, other = np.unique(_shingles(a)), np.unique(_shingles(b))
    both = len(np.intersect1d(one, other, assume_unique=True))
    either = len(one) + len(other) - both
    return both / either if either else 1.0


def _shingles(text: str) -> Hashes:
    """A hash of every run of SHINGLE characters; a shorter text is one shingle, an empty one none."""
    codes = np.frombuffer(plain(text).encode("utf-32-le"), np.uint32).astype(np.uint64)
    if not len(codes):
        return codes
    codes = np.pad(codes, (0, max(0, SHINGLE - len(codes))))
    count = len(codes) - SHINGLE + 1
    hashes = np.zeros(count, np.uint64)
    for n in range(SHINGLE):
        hashes = hashes * _BASE + codes[n : n + count]
    return _mixed(hashes)


def _mixed(x: Hashes) -> Hashes:
    """Spreads the bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _signatures(texts: Sequence[str]) -> Hashes:
    """The least of each text's hashes by BANDS * ROWS hash functions: [N, BANDS * ROWS]; 0 without text."""
    factors, shifts = np.random.default_rng(0).integers(1, 2**63, (2, BANDS * ROWS, 1), dtype=np.uint64)
    factors |= np.uint64(1)
    every = np.uint64(sum(map(len, texts)) // MOST_SHINGLES + 1)
    signatures = np.zeros((len(texts), BANDS * ROWS), np.uint64)
    firsts: dict[str, int] = {}
    for place, text in enumerate(texts):
        if (first := firsts.setdefault(text, place)) < place:  # many records may share one prompt
            signatures[place] = signatures[first]
            continue
        hashes = _shingles(text)
        sample = hashes[hashes % every == 0]
        kept = sample if len(sample) else hashes
        if len(kept):
            signatures[place] = (kept * factors + shifts).min(-1)
    return signatures
