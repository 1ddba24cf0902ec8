"""Checks on feedback row by row: what cannot be read, what is empty, broken, repeated or out of order."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from trimtab.doctor.duplicates import near_duplicates, plain, shared_prompts
from trimtab.doctor.findings import Check, Finding, Level, share
from trimtab.doctor.labels import label_findings
from trimtab.doctor.material import Material
from trimtab.feedback import suspicious
from trimtab.feedback.readers import RejectedRow
from trimtab.feedback.records import Kind, Prompt, Record, as_conversation

# Reasons for which the reader refuses a row, and that have a check of their own.
EMPTY = re.compile(r"empty response")
SAME = re.compile(r"chosen and rejected are the same")
ROLES = re.compile(r"unknown role|ends with an? \w+ turn")


def data_findings(material: Material, held_out: Sequence[Record] | None = None) -> list[Finding]:
    """Every check on the feedback itself, in the order in which they are shown.

    held_out: the records that the model is to be judged on, if there are any.
    """
    if not material.all:
        nothing = Check("data", "other checks").skipped("no row holds feedback")
        return [_readable(material), _empty(material), _same(material), _roles(material), nothing]
    return [
        _readable(material),
        _suits(material),
        _empty(material),
        _same(material),
        *(check.finding(material) for check in ROW_CHECKS),
        _encoding(material.records),
        _roles(material),
        _duplicates(material.records),
        _near_duplicates(material.records),
        _held_out(material.records, held_out),
        *label_findings(material),
    ]


@dataclass(frozen=True)
class RowCheck:
    """A check that each row passes or not."""

    name: str
    test: Callable[[Record], bool]
    bad: str  # "6 of 300 rows ..."
    fine: str
    advice: str
    of_responses: bool = True  # whether there is nothing to look at in bare prompts

    def finding(self, material: Material) -> Finding:
        check = Check("data", self.name)
        if self.of_responses and material.kind == "prompt":
            return check.skipped("only the prompts are used")
        found = [record.source for record in material.records if self.test(record)]
        of = len(material.records)
        return check.rows(found, of, bad=self.bad, fine=self.fine, advice=self.advice)


def empty_prompt(record: Record) -> bool:
    """Nothing is asked, though the row has a prompt: white space, or a last turn without words."""
    turns = as_conversation(record.prompt)
    return bool(turns) and not turns[-1].content.strip()


ROW_CHECKS = (
    RowCheck(
        "words in prompts",
        empty_prompt,
        "ask nothing: their prompt is white space",
        "every prompt says something",
        "delete these rows, or write what was asked",
        of_responses=False,
    ),
    RowCheck(
        "words in responses",
        suspicious.without_words,
        "have a response without a letter or digit",
        "every response has a letter or digit",
        "delete these rows, unless such an answer is meant",
    ),
    RowCheck(
        "responses in a row",
        suspicious.repeated_response,
        "hold the same response twice",
        "no row holds the same response twice",
        "leave one of the two, with the rank or score that is meant",
    ),
    RowCheck(
        "prompt in the response",
        suspicious.repeats_prompt,
        "have a response that begins with its prompt",
        "no response begins with its prompt",
        "cut the prompt off these responses; otherwise the model learns to repeat what it was asked",
    ),
    RowCheck(
        "control characters",
        suspicious.control_characters,
        "hold characters that are neither printed nor white space",
        "no text holds control characters",
        "remove them; they often come from a faulty export",
        of_responses=False,
    ),
)


def _rejected(material: Material, reason: re.Pattern[str] | None = None) -> list[RejectedRow]:
    """The rows that were refused for this reason, or those whose reason has no check of its own."""
    if reason is not None:
        return [bad for bad in material.reading.rejected if reason.search(bad.reason)]
    others = (EMPTY, SAME, ROLES)
    return [bad for bad in material.reading.rejected if not any(other.search(bad.reason) for other in others)]


def _level(material: Material) -> Level:
    """Of rows that training refuses, unless it is told to leave them out."""
    return "warning" if material.skips_bad_rows else "error"


def _rows(material: Material) -> int:
    """Rows of the file; records where it is a built-in example."""
    return material.reading.rows or len(material.all)


MEND = "mend the rows, or leave them out with --bad-rows skip"


def _readable(material: Material) -> Finding:
    check, bad, rows = Check("data", "readable rows"), _rejected(material), _rows(material)
    if not bad:
        return check.ok(f"{rows:,} rows hold {len(material.all):,} records")
    reasons = Counter(row.reason for row in bad)
    said = f"{share(len(bad), rows)} cannot be read; most often: {reasons.most_common(1)[0][0]}"
    places = (row.source for row in bad)
    return check.bad(_level(material), said, MEND, places, rows=len(bad), of=rows, reasons=dict(reasons))


def _suits(material: Material) -> Finding:
    """Whether the method can take the feedback, and what it leaves out."""
    check, method = Check("data", "what the method takes"), material.method
    kinds = Counter(record.kind for record in material.all)
    held = ", ".join(_counted(count, kind) for kind, count in kinds.most_common())
    if bare := suspicious.bare_prompts(material.all):
        advice = "take them out of the file, or write the responses"
        said = f"{share(len(bare), len(material.all), 'records')} are prompts without a response"
        level: Level = "error" if material.refusal else "warning"
        return check.bad(level, said, advice, (record.source for record in bare), kinds=dict(kinds))
    if method is None:
        if len(kinds) <= 1:
            return check.ok(f"the file holds {held}; a method's own needs are looked at with --method")
        advice = "name the method with --method; it converts what it can"
        return check.bad("warning", f"the file mixes kinds of feedback: {held}", advice, kinds=dict(kinds))
    if material.refusal:
        return check.bad(
            "error", material.refusal, f"{method.name} takes {method.data} records; see docs/data.md"
        )
    count = len(material.view)
    said = f"{method.name} learns from {_counted(count, method.data)}; the file holds {held}"
    if material.warnings:
        advice = "see whether these were meant to be left out"
        return check.bad("warning", f"{said}; {'; '.join(material.warnings)}", advice, records=count)
    return check.ok(said, records=count)


def _counted(count: int, kind: Kind) -> str:
    """Such as "1 pair", "300 pairs", "1 thumbs"."""
    return f"{count:,} {kind}{'s' * (count != 1 and kind != 'thumbs')}"


def _empty(material: Material) -> Finding:
    check = Check("data", "empty responses")
    if material.kind == "prompt":
        return check.skipped("only the prompts are used")
    return check.rows(
        [row.source for row in _rejected(material, EMPTY)],
        _rows(material),
        bad="have an empty response",
        fine="no response is empty",
        advice=MEND,
        level=_level(material),
    )


def _same(material: Material) -> Finding:
    """Refused by the reader if they are equal to the letter; here also if only case and space differ."""
    check = Check("data", "chosen and rejected")
    refused = _rejected(material, SAME)
    if not material.compares:
        return check.skipped("responses are not compared")
    compared = [r for r in material.records if any(suspicious.preferences(r))]
    if not refused and not compared:
        return check.skipped("no two responses are compared")
    found = [r for r in compared if any(plain(a) == plain(b) for a, b in suspicious.preferences(r))]
    return check.rows(
        [row.source for row in refused] + [record.source for record in found],
        _rows(material),
        bad="have the same text, or the same but for case and white space, as chosen and as rejected",
        fine="the better and the worse response differ in every row",
        advice=MEND if refused else "delete them: there is nothing to tell apart",
        level=_level(material) if refused else "warning",
    )


def _encoding(records: Sequence[Record]) -> Finding:
    check = Check("data", "encoding")
    found = [(record, signs) for record in records if (signs := suspicious.encoding_signs(record))]
    if not found:
        return check.ok("no text seems to be decoded wrongly")
    counts = Counter(sign for _, signs in found for sign in signs)
    seen = ", ".join(f"{name} in {count:,}" for name, count in counts.most_common())
    said = f"{share(len(found), len(records))} hold text that was decoded wrongly: {seen}"
    advice = "read the source with its own encoding and write it as UTF-8, or delete these rows"
    return check.bad(
        "warning", said, advice, (r.source for r, _ in found), rows=len(found), signs=dict(counts)
    )


def disorder(prompt: Prompt) -> str:
    """What is wrong with the order of a conversation's roles; empty if nothing is.

    A system turn comes first if at all; then user and assistant take turns, and tools answer the assistant.
    """
    roles = [turn.role for turn in as_conversation(prompt)]
    if "system" in roles[1:]:
        return "a system turn that is not the first"
    turns = [role for role in roles if role != "system"]
    if roles and not turns:
        return "a system turn alone"
    if turns and turns[0] != "user":
        return f"an {turns[0]} turn first" if turns[0] == "assistant" else f"a {turns[0]} turn first"
    for before, role in pairwise(turns):
        if role == before != "tool":
            return f"two {role} turns in a row"
        if role == "tool" and before == "user":
            return "a tool turn that answers no assistant"
    return ""


def _roles(material: Material) -> Finding:
    check = Check("data", "order of roles")
    refused = _rejected(material, ROLES)
    talks = [record for record in material.records if not isinstance(record.prompt, str)]
    if not talks and not refused:
        return check.skipped("no prompt is a conversation")
    found = [(record.source, wrong) for record in talks if (wrong := disorder(record.prompt))]
    reasons = Counter(wrong for _, wrong in found) + Counter(row.reason for row in refused)
    if not reasons:
        return check.ok(f"user and assistant take turns in all {len(talks):,} conversations")
    places = [*(row.source for row in refused), *(source for source, _ in found)]
    of = len(talks) + len(refused)
    said = f"{share(len(places), of, 'conversations')} are out of order: {reasons.most_common(1)[0][0]}"
    advice = "mend the turns; a model is asked by a user turn, and a system turn stands first"
    level = _level(material) if refused else "warning"
    return check.bad(level, said, advice, places, rows=len(places), of=of, reasons=dict(reasons))


def _duplicates(records: Sequence[Record]) -> Finding:
    return Check("data", "duplicates").rows(
        [record.source for record in suspicious.duplicates(records)],
        len(records),
        bad="say the same as an earlier row",
        fine=f"no row comes twice among {len(records):,}",
        advice="delete them; a row that comes twice counts twice",
    )


def _near_duplicates(records: Sequence[Record]) -> Finding:
    found = near_duplicates(records)
    return Check("data", "near-duplicates").rows(
        [record.source for record, _ in found],
        len(records),
        bad="are nearly the same as an earlier row (80 % of their runs of five characters)",
        fine="no two rows are nearly the same",
        advice="look at them and keep one of each; they count twice, and leak into held-out data",
        pairs=_sources(found),
    )


def _sources(found: Sequence[tuple[Record, Record]]) -> list[list[str]]:
    return [[record.source, twin.source] for record, twin in found[: suspicious.SHOWN]]


def _held_out(records: Sequence[Record], held_out: Sequence[Record] | None) -> Finding:
    check = Check("data", "held-out prompts")
    if held_out is None:
        return check.skipped("name the file that the model is judged on with --held-out")
    found = shared_prompts(records, held_out)
    if not found:
        return check.ok(f"none of {len(held_out):,} held-out records has a prompt of the training data")
    said = f"{share(len(found), len(held_out), 'held-out records')} have a prompt that is also trained on"
    advice = "take them out of one side, or the result will look better than it is"
    places = (record.source for record, _ in found)
    return check.bad("error", said, advice, places, rows=len(found), pairs=_sources(found))
