"""Checks on the chat template: which conversations it refuses, what it drops, where the response begins."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from trimtab.doctor.findings import Check, Finding, Level, share
from trimtab.feedback.records import Message, Record
from trimtab.feedback.tokenise import PLAIN_CHAT_TEMPLATE

NAMES = ("chat template", "conversations it takes", "turns it keeps", "prompt as a prefix")


def rendered(tokenizer: Any, turns: Sequence[Message], *, open_turn: bool) -> str:
    """The conversation as text, by the tokenizer's template or the plain one.

    open_turn: whether it ends where the assistant begins to speak.
    Raises whatever the template raises.
    """
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    template = tokenizer.chat_template or PLAIN_CHAT_TEMPLATE
    return str(
        tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=open_turn, chat_template=template
        )
    )


def template_findings(records: Sequence[Record], tokenizer: Any) -> list[Finding]:
    """Every check on the template. Without conversations all but the first are skipped."""
    talks = [record for record in records if not isinstance(record.prompt, str)]
    first = _template(tokenizer, len(talks), len(records))
    if not talks:
        return [first, *(Check("tokens", name).skipped("no prompt is a conversation") for name in NAMES[1:])]
    refused: list[tuple[Record, str]] = []
    texts: list[tuple[Record, tuple[Message, ...], str, str]] = []  # record, turns, opening, whole
    for record in talks:
        asked = tuple(turn for turn in record.prompt if isinstance(turn, Message))
        try:
            opening = rendered(tokenizer, asked, open_turn=True)
            for response in record.responses or ("",):
                turns = (*asked, Message("assistant", response)) if record.responses else asked
                whole = rendered(tokenizer, turns, open_turn=False) if record.responses else opening
                texts.append((record, turns, opening, whole))
        except Exception as error:  # templates raise what they like, jinja2's errors among them
            refused.append((record, str(error).strip() or type(error).__name__))
    return [first, _taken(refused, len(talks)), _kept(texts, len(talks)), _prefix(texts, tokenizer)]


def _template(tokenizer: Any, talks: int, records: int) -> Finding:
    check = Check("tokens", NAMES[0])
    if not talks and tokenizer.chat_template is None:
        return check.ok("prompts are continued as they are; the tokenizer has no chat template")
    if talks < records and tokenizer.chat_template is not None:
        said = (
            f"{share(records - talks, records)} have a prompt of plain text, which does not pass through the "
        )
        advice = (
            "write the prompts as messages if this model is a chat model; leave them if it is a base model"
        )
        return check.bad(
            "warning", said + "chat template that the tokenizer has", advice, rows=records - talks
        )
    if tokenizer.chat_template is None:
        return check.ok(
            "the tokenizer has none, so conversations become a plain Human: and Assistant: transcript"
        )
    return check.ok(f"{talks:,} conversations pass through the tokenizer's own")


def _taken(refused: list[tuple[Record, str]], of: int) -> Finding:
    check = Check("tokens", NAMES[1])
    if not refused:
        return check.ok("the template takes every conversation")
    reason = Counter(reason for _, reason in refused).most_common(1)[0][0]
    said = f"{share(len(refused), of, 'conversations')} are refused by the template: {reason}"
    advice = "mend the turns or the template; training stops at these rows"
    return check.bad("error", said, advice, (r.source for r, _ in refused), rows=len(refused), of=of)


def _kept(texts: Sequence[tuple[Record, tuple[Message, ...], str, str]], of: int) -> Finding:
    """Whether each turn's text is in the whole: some templates drop the system turn, or earlier thoughts."""
    check = Check("tokens", NAMES[2])
    lost = [
        (record.source, turn.role)
        for record, turns, _, whole in texts
        for turn in turns
        if turn.content.strip() not in whole
    ]
    if not lost:
        return check.ok("the text of every turn is in what the template writes")
    roles = dict(Counter(role for _, role in set(lost)))
    said = f"{share(len({source for source, _ in lost}), of, 'conversations')} lose the text of a turn: "
    said += ", ".join(f"{role} in {count:,}" for role, count in roles.items())
    advice = (
        "put a system turn's text into the first user turn, or mend the template; what is lost is not read"
    )
    level: Level = "error" if "system" in roles else "warning"
    return check.bad(level, said, advice, (source for source, _ in lost), roles=roles)


def _prefix(texts: Sequence[tuple[Record, tuple[Message, ...], str, str]], tokenizer: Any) -> Finding:
    """Whether the prompt, as it is when the model is asked, is how the whole conversation begins."""
    check = Check("tokens", NAMES[3])
    if all(whole == opening for _, _, opening, whole in texts):
        return check.skipped("there are no responses")
    moved = [record.source for record, _, opening, whole in texts if not whole.startswith(opening)]
    return check.rows(
        moved,
        len(texts),
        bad="are written otherwise with the response than before it, so that no place in the text is its "
        "beginning; trimtab then trains the bare response and an end token, without what the template adds",
        fine="the prompt is written the same before the response and with it",
        advice="mend the template, so that the text with add_generation_prompt=True begins the whole text",
    )
