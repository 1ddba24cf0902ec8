"""Checks on lengths in tokens: what is cut, what the model can read, and what is still told apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.doctor.encoded import Encoded
from trimtab.doctor.findings import Check, Finding, share
from trimtab.feedback.records import Prompt, Record
from trimtab.feedback.sequences import Ids
from trimtab.feedback.suspicious import preferences
from trimtab.feedback.tokenise import encode


@dataclass(frozen=True)
class Limits:
    """How much goes in.

    Attributes:
        max_length: tokens of prompt and response together.
        new_tokens: those that are kept for an answer that the model writes itself; 0 for recorded ones.
        positions: the longest sequence that the model was made for, if it says so.
        vocabulary: how many tokens the model knows, if it says so.
    """

    max_length: int
    new_tokens: int = 0
    positions: int | None = None
    vocabulary: int | None = None


def limits_of(config: Any, max_length: int, new_tokens: int = 0) -> Limits:
    """The limits of a model by its configuration."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return Limits(max_length, new_tokens, positions, getattr(text, "vocab_size", None))


def length_findings(
    records: Sequence[Record], rows: Sequence[Encoded], of: int, tokenizer: Any, limits: Limits
) -> list[Finding]:
    """The checks on lengths.

    of: how many sequences there are, of which `rows` may be a part.
    """
    cut = {
        place: _cut(row, tokenizer, limits)
        for place, row in enumerate(rows)
        if row.length > limits.max_length - limits.new_tokens
    }
    return [
        _truncation(rows, of, cut, limits),
        _positions(rows, limits),
        _vocabulary(rows, limits),
        _told_apart(records, rows, cut),
    ]


def _cut(row: Encoded, tokenizer: Any, limits: Limits) -> tuple[Ids, Ids]:
    """What is left of a sequence that is too long."""
    if row.response is None:
        return row.prompt_ids[-max(1, limits.max_length - limits.new_tokens) :], ()
    return encode([(row.prompt, row.response)], tokenizer, max_length=limits.max_length)[0]


def _truncation(rows: Sequence[Encoded], of: int, cut: dict[int, tuple[Ids, Ids]], limits: Limits) -> Finding:
    check = Check("tokens", "what is cut")
    if not rows:
        return check.skipped("there is nothing to tokenise")
    lengths = sorted(row.length + limits.new_tokens for row in rows)
    values = {
        "longest": lengths[-1],
        "median": lengths[len(lengths) // 2],
        "rows": len(cut),
        "looked_at": len(rows),
        "of": of,
    }
    looked_at = f" ({len(rows):,} of {of:,} sequences were looked at)" if len(rows) < of else ""
    if not cut:
        said = f"the longest of {len(rows):,} sequences has {lengths[-1]:,} of {limits.max_length:,} tokens"
        return check.ok(said + looked_at, **values)
    prompts = sum(len(prompt) < len(rows[place].prompt_ids) for place, (prompt, _) in cut.items())
    responses = sum(len(response) < len(rows[place].response_ids) for place, (_, response) in cut.items())
    room = f" less {limits.new_tokens:,} for an answer" if limits.new_tokens else ""
    most = f"--max-length {limits.max_length:,}{room}"
    said = f"{share(len(cut), len(rows), 'sequences')} are longer than {most}: "
    losses = [f"{prompts:,} prompts lose their beginning"] * bool(prompts)
    losses += [f"{responses:,} responses lose their end, and their end token"] * bool(responses)
    said += " and ".join(losses)
    nearly_all = lengths[min(len(lengths) - 1, int(0.99 * len(lengths)))]
    advice = (
        f"--max-length {lengths[-1]} cuts none, {nearly_all} one in a hundred; or delete the longest rows"
    )
    places = (rows[place].source for place in cut)
    return check.bad(
        "warning", said + looked_at, advice, places, **values, prompts=prompts, responses=responses
    )


def _positions(rows: Sequence[Encoded], limits: Limits) -> Finding:
    check = Check("tokens", "length that the model reads")
    if limits.positions is None or not rows:
        return check.skipped("the model's configuration names no longest sequence")
    longest = min(max(row.length for row in rows) + limits.new_tokens, limits.max_length)
    if longest <= limits.positions:
        return check.ok(f"it reads {limits.positions:,} tokens, and {longest:,} is the most it gets")
    beyond = [row.source for row in rows if row.length + limits.new_tokens > limits.positions]
    said = f"{share(len(beyond), len(rows), 'sequences')} have more tokens than the model was made for, "
    said += f"{limits.positions:,}"
    advice = f"pass --max-length {limits.positions}, or take a model that reads more"
    values = {"rows": len(beyond), "longest": longest, "positions": limits.positions}
    return check.bad("error", said, advice, beyond, **values)


def _vocabulary(rows: Sequence[Encoded], limits: Limits) -> Finding:
    check = Check("tokens", "vocabulary")
    if limits.vocabulary is None or not rows:
        return check.skipped("the model's configuration names no size of its vocabulary")
    highest = [max((*row.prompt_ids, *row.response_ids)) for row in rows]
    beyond = [row.source for row, top in zip(rows, highest, strict=True) if top >= limits.vocabulary]
    return check.rows(
        beyond,
        len(rows),
        bad=f"hold tokens that the model does not have: it has {limits.vocabulary:,}",
        fine=f"every token is among the {limits.vocabulary:,} of the model",
        advice="take the tokenizer that belongs to the model, or resize the model's embeddings",
        level="error",
    )


def _told_apart(
    records: Sequence[Record], rows: Sequence[Encoded], cut: dict[int, tuple[Ids, Ids]]
) -> Finding:
    """Pairs that are the same tokens, since they differ in what is cut or in what the tokenizer drops."""
    check = Check("tokens", "chosen and rejected in tokens")
    left: dict[tuple[Prompt, str | None], tuple[int, ...]] = {
        (row.prompt, row.response): tuple(cut[place][1] if place in cut else row.response_ids)
        for place, row in enumerate(rows)
    }
    pairs = [
        (record.source, left[record.prompt, better], left[record.prompt, worse])
        for record in records
        for better, worse in preferences(record)
        if (record.prompt, better) in left and (record.prompt, worse) in left
    ]
    if not pairs:
        return check.skipped("no two responses are compared")
    return check.rows(
        [source for source, better, worse in pairs if better == worse],
        len(pairs),
        bad="are the same tokens as chosen and as rejected, after cutting",
        fine=f"the {len(pairs):,} pairs of a better and a worse response differ in their tokens",
        advice="raise --max-length if they were cut, or delete them: there is nothing to tell apart",
    )
