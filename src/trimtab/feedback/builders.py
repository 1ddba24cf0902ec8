"""From the columns of one row to its records: one small function for each shape of feedback."""

from collections.abc import Iterator
from typing import Any

from trimtab.errors import UserError
from trimtab.feedback import columns
from trimtab.feedback.columns import Row
from trimtab.feedback.records import Message, Record, type_name

RESPONSE = "completion|response|output"
LABEL = "label|kto_tag|positive"
SCORE = "reward|score|rating"


def prompt_only(row: Row) -> Iterator[Record]:
    """`prompt`."""
    yield Record("prompt", columns.prompt(row))


def demonstration(row: Row) -> Iterator[Record]:
    """A prompt and a response to imitate."""
    prompt, response = columns.answered(columns.prompt(row), *_named(row, RESPONSE + "|answer"))
    yield Record("demonstration", prompt, (response,))


def thumbs(row: Row) -> Iterator[Record]:
    """A prompt, a response and a label."""
    prompt, response = columns.answered(columns.prompt(row), *_named(row, RESPONSE))
    yield Record("thumbs", prompt, (response,), desirable=columns.label(*_named(row, LABEL)))


def score(row: Row) -> Iterator[Record]:
    """A prompt, a response and a number."""
    prompt, response = columns.answered(columns.prompt(row), *_named(row, RESPONSE))
    yield Record("score", prompt, (response,), scores=(columns.number(*_named(row, SCORE)),))


def scored(row: Row) -> Iterator[Record]:
    """A prompt, several responses and a number for each."""
    prompt, responses = columns.responses(columns.prompt(row), row["responses"], "responses")
    yield Record("score", prompt, responses, scores=columns.numbers(row["scores"], "scores"))


def ranking(row: Row) -> Iterator[Record]:
    """A prompt, several responses and a rank for each, the lowest the best."""
    prompt, responses = columns.responses(columns.prompt(row), row["responses"], "responses")
    yield Record("ranking", prompt, responses, ranks=columns.ranks(row["ranks"], "ranks"))


def best_first(row: Row) -> Iterator[Record]:
    """A prompt and `output`, a list of responses, the best first, without ties."""
    prompt, responses = columns.responses(columns.prompt(row), row["output"], "output")
    yield Record("ranking", prompt, responses, ranks=tuple(range(len(responses))))


def pair(row: Row) -> Iterator[Record]:
    """A prompt, `chosen` and `rejected`, each text, a message, or a conversation."""
    prompt = columns.prompt(row)
    before, chosen = columns.answered(prompt, row["chosen"], "chosen")
    other, rejected = columns.answered(prompt, row["rejected"], "rejected")
    if before != other:
        raise UserError("'chosen' and 'rejected' answer different prompts")
    yield Record("pair", before, (chosen, rejected), margin=_margin(row))


def implicit_pair(row: Row) -> Iterator[Record]:
    """`chosen` and `rejected` that begin with the same prompt, as text or as conversations."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if chosen == rejected:
            raise UserError("chosen and rejected are the same")
        end = columns.common_prefix(chosen, rejected)
        yield Record("pair", chosen[:end], (chosen[end:], rejected[end:]), margin=_margin(row))
    else:
        turns = columns.messages(chosen, "chosen"), columns.messages(rejected, "rejected")
        yield _conversation_pair(*turns, _margin(row))


def transcripts(row: Row) -> Iterator[Record]:
    """HH-RLHF: `chosen` and `rejected` are transcripts that differ in the last turn."""
    chosen, rejected = (columns.transcript(row[name], name) for name in ("chosen", "rejected"))
    yield _conversation_pair(chosen, rejected, _margin(row))


def conversation(row: Row) -> Iterator[Record]:
    """`messages` or `conversations` that end with the response to imitate."""
    prompt, response = _conversation(row)
    yield Record("demonstration", prompt, (response,))


def conversation_thumbs(row: Row) -> Iterator[Record]:
    """`messages` or `conversations` that end with the response, and a label."""
    prompt, response = _conversation(row)
    yield Record("thumbs", prompt, (response,), desirable=columns.label(*_named(row, LABEL)))


def text_only(row: Row) -> Iterator[Record]:
    """`text` to imitate, without a prompt."""
    yield Record("demonstration", "", (columns.text(row["text"], "text"),))


def text_thumbs(row: Row) -> Iterator[Record]:
    """`text` without a prompt, and a label."""
    judged = columns.text(row["text"], "text")
    yield Record("thumbs", "", (judged,), desirable=columns.label(*_named(row, LABEL)))


def tree(row: Row) -> Iterator[Record]:
    """An Open Assistant message tree: each prompt in it with at least two ranked replies is a ranking.

    Replies that are deleted, marked synthetic (a model wrote them) or without a rank are left out.
    """
    yield from _rankings(_node(row["prompt"]), before=())


def _rankings(node: dict[str, Any], before: tuple[Message, ...]) -> Iterator[Record]:
    if node.get("deleted"):
        return
    said = columns.text(node["role"], "role")
    role = columns.ROLE_NAMES.get(said, said)
    asked = (*before, Message(role, node["text"]))
    replies = [_node(reply) for reply in _replies(node)]
    ranked = [reply for reply in replies if _is_ranked(reply)]
    if role == "user" and len(ranked) >= 2:
        ranks = columns.ranks([reply["rank"] for reply in ranked], "rank")
        yield Record("ranking", asked, tuple(reply["text"] for reply in ranked), ranks=ranks)
    for reply in replies:
        yield from _rankings(reply, asked)


def _node(value: Any) -> dict[str, Any]:
    if not (isinstance(value, dict) and "role" in value and "text" in value):
        raise UserError("a message of the tree has no 'role' or no 'text'")
    for flag in ("deleted", "synthetic"):
        if value.get(flag) not in (None, True, False):
            raise UserError(f"{flag!r} of a message of the tree must be true or false")
    return value


def _replies(node: dict[str, Any]) -> list[Any]:
    replies = [] if node.get("replies") is None else node["replies"]
    if not isinstance(replies, list):
        raise UserError(f"'replies' of a message of the tree must be a list, not {type_name(replies)}")
    return replies


def _is_ranked(reply: dict[str, Any]) -> bool:
    return reply.get("rank") is not None and not reply.get("synthetic") and not reply.get("deleted")


def _conversation(row: Row) -> tuple[tuple[Message, ...], str]:
    """The turns before the response, and the response."""
    name = "conversations" if "conversations" in row else "messages"
    turns = columns.messages(row[name], name)
    return columns.last_turn((*columns.system_turn(row), *turns), name)


def _conversation_pair(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...], margin: float | None
) -> Record:
    prompt, good = columns.last_turn(chosen, "chosen")
    other, bad = columns.last_turn(rejected, "rejected")
    if prompt != other:
        raise UserError("chosen and rejected differ before the last turn; only the last may differ")
    return Record("pair", prompt, (good, bad), margin=margin)


def _named(row: Row, names: str) -> tuple[Any, str]:
    """The value and name of the one column of "a|b" that the row has."""
    name = next(name for name in names.split("|") if name in row)
    return row[name], name


def _margin(row: Row) -> float | None:
    """`margin`, or UltraFeedback's `score_chosen` less `score_rejected`; an empty column is not known."""
    given = {name: value for name, value in row.items() if value not in (None, "")}
    if "margin" in given:
        return columns.number(given["margin"], "margin")
    if "score_chosen" in given and "score_rejected" in given:
        return columns.number(given["score_chosen"], "score_chosen") - columns.number(
            given["score_rejected"], "score_rejected"
        )
    return None
