"""What looks wrong in feedback that is valid row by row: duplicates, contradictions, bias, broken text."""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trimtab.feedback.conversions import preferred
from trimtab.feedback.records import Prompt, Record, as_conversation

SHOWN = 5  # places that a finding lists

# Text decoded with the wrong encoding: the replacement character, or UTF-8 read as Latin-1 or Windows-1252.
MOJIBAKE = re.compile("\ufffd|Ã[\x80-\xbf©¨¼¶¤±]|â€[™œ\x9d“”¦]|Â[\xa0»«°·]")
NOT_PRINTED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


# A response, and what it is better than (pairs) or whether it is desirable (thumbs), for a prompt.
Statement = tuple[Prompt, str, str | bool]


@dataclass(frozen=True)
class Finding:
    """One thing to look at: how many records it concerns, and where the first of them stand."""

    what: str
    count: int
    of: int
    sources: tuple[str, ...] = ()


def findings(records: Sequence[Record]) -> list[Finding]:
    """Everything that looks wrong, the most frequent first."""
    found: list[Finding | None] = [_finding(what, records, test) for what, test in ROW_CHECKS.items()]
    found += [_duplicates(records), _contradictions(records), _outliers(records)]
    found += [_length_bias(records), _unbalanced(records), _mixed(records)]
    return sorted((finding for finding in found if finding and finding.count), key=lambda f: -f.count)


def repeated_response(record: Record) -> bool:
    """The same response twice in one ranking or list of scores."""
    return len(set(record.responses)) < len(record.responses)


def without_words(record: Record) -> bool:
    """A response that holds no letter and no digit."""
    return any(not any(c.isalnum() for c in response) for response in record.responses)


def broken_text(record: Record) -> bool:
    """Signs of a wrong encoding."""
    return any(MOJIBAKE.search(text) for text in _texts(record))


def control_characters(record: Record) -> bool:
    """Characters that are neither printed nor white space."""
    return any(NOT_PRINTED.search(text) for text in _texts(record))


def repeats_prompt(record: Record) -> bool:
    """A response that begins with the prompt, or with the last turn of it (of eight characters or more)."""
    turns = as_conversation(record.prompt)
    asked = turns[-1].content.strip() if turns else ""
    return len(asked) >= 8 and any(response.lstrip().startswith(asked) for response in record.responses)


ROW_CHECKS: dict[str, Callable[[Record], bool]] = {
    "the same response twice in one record": repeated_response,
    "a response without a letter or digit": without_words,
    "text that seems to be decoded wrongly": broken_text,
    "control characters in the text": control_characters,
    "a response that repeats its prompt": repeats_prompt,
}


def _finding(what: str, records: Sequence[Record], test: Callable[[Record], bool]) -> Finding:
    return _of(what, [record for record in records if test(record)], len(records))


def _of(what: str, found: Sequence[Record], total: int) -> Finding:
    return Finding(what, len(found), total, tuple(record.source for record in found[:SHOWN]))


def _duplicates(records: Sequence[Record]) -> Finding:
    seen: set[tuple[object, ...]] = set()
    found = []
    for record in records:
        key = (record.kind, record.prompt, record.responses, record.ranks, record.scores, record.desirable)
        if key in seen:
            found.append(record)
        seen.add(key)
    return _of("the same record as an earlier one", found, len(records))


def _contradictions(records: Sequence[Record]) -> Finding:
    """Chosen where it was rejected before, or a thumbs-down where there was a thumbs-up."""
    said: set[Statement] = set()
    found = []
    for record in records:
        statements = list(_statements(record))
        if any(opposite in said for _, opposite in statements):
            found.append(record)
        said.update(statement for statement, _ in statements)
    return _of("the opposite of an earlier record on the same prompt", found, len(records))


def _statements(record: Record) -> Iterator[tuple[Statement, Statement]]:
    """What a record says, and what would contradict it."""
    if record.kind == "thumbs":
        response, up = record.responses[0], bool(record.desirable)
        yield (record.prompt, response, up), (record.prompt, response, not up)
    for better, worse in _preferences(record):
        yield (record.prompt, better, worse), (record.prompt, worse, better)


def _preferences(record: Record) -> Iterator[tuple[str, str]]:
    """(better, worse) of a pair or a ranking."""
    if record.kind == "pair":
        yield record.responses[0], record.responses[1]
    elif record.kind == "ranking":
        for better, worse in preferred(record):
            yield record.responses[better], record.responses[worse]


def _outliers(records: Sequence[Record]) -> Finding | None:
    """Responses more than ten times as long as half of them are, and of 1,000 characters or more."""
    lengths = [len(response) for record in records for response in record.responses]
    if not lengths:
        return None
    limit = max(1000, 10 * statistics.median(lengths))
    return _finding(
        f"a response of more than {limit:,.0f} characters (ten times the median)",
        records,
        lambda record: any(len(response) > limit for response in record.responses),
    )


def _length_bias(records: Sequence[Record]) -> Finding | None:
    """Whether the better response is the longer one in more than 60 % of the pairs, or in less than 40 %."""
    pairs = [both for record in records for both in _preferences(record)]
    longer = sum(len(better) > len(worse) for better, worse in pairs)
    shorter = sum(len(better) < len(worse) for better, worse in pairs)
    if longer + shorter < 20 or 0.4 <= longer / (longer + shorter) <= 0.6:
        return None
    way, count = ("longer", longer) if longer > shorter else ("shorter", shorter)
    advice = f"a model can win by being {way} alone; compare lengths when you judge the result"
    return Finding(f"pairs whose better response is the {way} one: {advice}", count, len(pairs))


def _unbalanced(records: Sequence[Record]) -> Finding | None:
    """Whether fewer than one label in ten is the rarer one."""
    labels = Counter(record.desirable for record in records if record.kind == "thumbs")
    total = labels.total()
    if not total or min(labels[True], labels[False]) >= total / 10:
        return None
    side = "desirable" if labels[True] > labels[False] else "undesirable"
    advice = "weigh the rarer label more (KTO's desirable and undesirable weights)"
    return Finding(f"thumbs that are {side}: {advice}", labels[side == "desirable"], total)


def _mixed(records: Sequence[Record]) -> Finding | None:
    """Prompts without a response among records that have one."""
    bare = [record for record in records if record.kind == "prompt"]
    if len(bare) == len(records):
        return None
    return _of("a prompt without a response among other records", bare, len(records))


def _texts(record: Record) -> Iterator[str]:
    for turn in as_conversation(record.prompt):
        yield turn.content
    yield from record.responses
