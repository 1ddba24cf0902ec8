"""What looks wrong in feedback that is valid row by row: duplicates, contradictions, bias, broken text."""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trimtab.feedback.conversions import preferred
from trimtab.feedback.records import Prompt, Record, as_conversation

SHOWN = 5  # places that a finding lists
FEWEST_PAIRS = 20  # that tell anything of a bias to length
UNBIASED = (0.4, 0.6)  # the share of pairs whose better response is the longer one
RARE = 0.1  # the share of labels below which the rarer one is told

# What text holds that was decoded with the wrong encoding.
ENCODING_SIGNS: dict[str, re.Pattern[str]] = {
    "the replacement character U+FFFD": re.compile("\ufffd"),
    "UTF-8 read as Latin-1 or Windows-1252": re.compile("Ã[\x80-\xbf©¨¼¶¤±]|â€[™œ\x9d“”¦]|Â[\xa0»«°·]"),
    "a byte order mark": re.compile("\ufeff"),
}
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
    total = len(records)
    found.append(_of("the same record as an earlier one", duplicates(records), total))
    found.append(_of("the opposite of an earlier record on the same prompt", contradictions(records), total))
    found += [_outliers(records), _length_bias(records), _unbalanced(records)]
    found.append(_of("a prompt without a response among other records", bare_prompts(records), total))
    return sorted((finding for finding in found if finding and finding.count), key=lambda f: -f.count)


def repeated_response(record: Record) -> bool:
    """The same response twice in one ranking or list of scores."""
    return len(set(record.responses)) < len(record.responses)


def without_words(record: Record) -> bool:
    """A response that holds no letter and no digit."""
    return any(not any(c.isalnum() for c in response) for response in record.responses)


def encoding_signs(record: Record) -> list[str]:
    """The names in ENCODING_SIGNS of what its text holds."""
    return [name for name, sign in ENCODING_SIGNS.items() if any(sign.search(t) for t in texts(record))]


def broken_text(record: Record) -> bool:
    """Signs of a wrong encoding."""
    return bool(encoding_signs(record))


def control_characters(record: Record) -> bool:
    """Characters that are neither printed nor white space."""
    return any(NOT_PRINTED.search(text) for text in texts(record))


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


def duplicates(records: Sequence[Record]) -> list[Record]:
    """The records that say what an earlier one says."""
    seen: set[tuple[object, ...]] = set()
    found = []
    for record in records:
        key = (record.kind, record.prompt, record.responses, record.ranks, record.scores, record.desirable)
        if key in seen:
            found.append(record)
        seen.add(key)
    return found


def contradictions(records: Sequence[Record]) -> list[Record]:
    """Chosen where it was rejected before, or a thumbs-down where there was a thumbs-up."""
    said: set[Statement] = set()
    found = []
    for record in records:
        statements = list(_statements(record))
        if any(opposite in said for _, opposite in statements):
            found.append(record)
        said.update(statement for statement, _ in statements)
    return found


def _statements(record: Record) -> Iterator[tuple[Statement, Statement]]:
    """What a record says, and what would contradict it."""
    if record.kind == "thumbs":
        response, up = record.responses[0], bool(record.desirable)
        yield (record.prompt, response, up), (record.prompt, response, not up)
    for better, worse in preferences(record):
        yield (record.prompt, better, worse), (record.prompt, worse, better)


def preferences(record: Record) -> Iterator[tuple[str, str]]:
    """(better, worse) of a pair or a ranking."""
    if record.kind == "pair":
        yield record.responses[0], record.responses[1]
    elif record.kind == "ranking":
        for better, worse in preferred(record):
            yield record.responses[better], record.responses[worse]


def outliers(records: Sequence[Record]) -> tuple[float, list[Record]]:
    """Responses more than ten times as long as half of them are, and of more than 1,000 characters.

    Returns the limit in characters, and the records beyond it.
    """
    lengths = [len(response) for record in records for response in record.responses]
    limit = max(1000, 10 * statistics.median(lengths)) if lengths else 1000
    return limit, [r for r in records if any(len(response) > limit for response in r.responses)]


def _outliers(records: Sequence[Record]) -> Finding:
    limit, found = outliers(records)
    what = f"a response of more than {limit:,.0f} characters (ten times the median)"
    return _of(what, found, len(records))


def _length_bias(records: Sequence[Record]) -> Finding | None:
    """Whether the better response is the longer one in more than 60 % of the pairs, or in less than 40 %."""
    pairs = [both for record in records for both in preferences(record)]
    longer = sum(len(better) > len(worse) for better, worse in pairs)
    shorter = sum(len(better) < len(worse) for better, worse in pairs)
    low, high = UNBIASED
    if longer + shorter < FEWEST_PAIRS or low <= longer / (longer + shorter) <= high:
        return None
    way, count = ("longer", longer) if longer > shorter else ("shorter", shorter)
    advice = f"a model can win by being {way} alone; compare lengths when you judge the result"
    return Finding(f"pairs whose better response is the {way} one: {advice}", count, len(pairs))


def label_counts(records: Sequence[Record]) -> tuple[int, int]:
    """How many thumbs are up and how many down."""
    labels = Counter(record.desirable for record in records if record.kind == "thumbs")
    return labels[True], labels[False]


def _unbalanced(records: Sequence[Record]) -> Finding | None:
    """Whether fewer than one label in ten is the rarer one."""
    ups, downs = label_counts(records)
    if not ups + downs or min(ups, downs) >= RARE * (ups + downs):
        return None
    side = "desirable" if ups > downs else "undesirable"
    advice = "weigh the rarer label more (KTO's desirable and undesirable weights)"
    return Finding(f"thumbs that are {side}: {advice}", max(ups, downs), ups + downs)


def bare_prompts(records: Sequence[Record]) -> list[Record]:
    """Prompts without a response, if other records have one."""
    bare = [record for record in records if record.kind == "prompt"]
    return bare if len(bare) < len(records) else []


def texts(record: Record) -> Iterator[str]:
    """Every turn of the prompt, and every response."""
    for turn in as_conversation(record.prompt):
        yield turn.content
    yield from record.responses
