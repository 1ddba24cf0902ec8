"""Records to a table of tokens: a thousand at a time, each distinct response to a prompt once."""

import logging
import random
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trimtab.errors import UserError
from trimtab.feedback.batches import Table
from trimtab.feedback.compact import Example, Examples, ExampleWriter, RowWriter, TokenRows
from trimtab.feedback.encoding import PLAIN_CHAT_TEMPLATE, encode_prompt, encode_together, end_tokens
from trimtab.feedback.mapped import chunks
from trimtab.feedback.numbers import MARK, Numbers, mark, numbered
from trimtab.feedback.records import Kind, Prompt, Record
from trimtab.feedback.sequences import Ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("trimtab")

__all__ = ["PLAIN_CHAT_TEMPLATE", "add_mismatched", "encode", "encode_prompt", "end_tokens", "tokenise"]


def tokenise(records: Iterable[Record], tokenizer: "PreTrainedTokenizerBase", *, max_length: int) -> Table:
    """Turns records of one kind into a table of token sequences.

    Every response ends with the end-of-sequence token unless it had to be cut. Tokens never span
    the boundary between prompt and response.

    Args:
        records: all of one kind, not "prompt"; taken once, a thousand at a time.
        max_length: tokens of prompt and response together; prompts lose their beginning, responses
            their end, and how many were cut is logged.
    """
    rows, examples = RowWriter(), ExampleWriter()
    marks, cuts, prompts = Numbers(MARK), Numbers("?"), Numbers(MARK)  # of sequences, and of score's examples
    kind: Kind = "demonstration"
    for chunk in chunks(records):
        kind = chunk[0].kind
        index: dict[tuple[Prompt, str], int] = {}  # the same response may come again in another chunk
        for record in chunk:
            for response in record.responses:
                index.setdefault((record.prompt, response), len(marks) + len(index))
        encoded, cut = _encode(list(index), tokenizer, max_length)
        rows.extend(encoded)
        cuts.extend(cut)
        marks.extend(np.frombuffer(b"".join(map(mark, index)), MARK))
        examples.extend([e for r in chunk for e in _examples(r, [index[r.prompt, a] for a in r.responses])])
        if kind == "score":
            prompts.extend(np.frombuffer(b"".join(mark(r.prompt) for r in chunk for _ in r.responses), MARK))
    numbers, kept = numbered(marks.array)
    _warn_of(cuts.array[kept], max_length)
    said = examples.done(numbers)
    if kind == "score":
        said = _with_baselines(said, prompts.array)
    return Table(kind, rows.done(kept if len(kept) < len(numbers) else None), said)


def encode(
    texts: Sequence[tuple[Prompt, str]], tokenizer: "PreTrainedTokenizerBase", *, max_length: int
) -> list[tuple[Ids, Ids]]:
    """The tokens of each (prompt, response), as `tokenise` describes; an empty response is its end token."""
    rows, cut = _encode(texts, tokenizer, max_length)
    _warn_of(np.array(cut, bool), max_length)
    return rows


def _encode(
    texts: Sequence[tuple[Prompt, str]], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> tuple[list[tuple[Ids, Ids]], list[bool]]:
    """The tokens, and which were cut."""
    rows, bos = encode_together(tokenizer, texts), tokenizer.bos_token_id
    cut = [_cut(row, max_length, bos) for row in rows]
    return cut, [a is not b for a, b in zip(rows, cut, strict=True)]


def _warn_of(cut: np.ndarray, max_length: int) -> None:
    if cut.any():
        log.warning("%d of %d sequences were cut to %d tokens", cut.sum(), len(cut), max_length)


def _cut(row: tuple[Ids, Ids], max_length: int, bos: int | None) -> tuple[Ids, Ids]:
    """Shortens a row: the prompt gives way first, down to half of max_length."""
    prompt, response = row
    if len(prompt) + len(response) <= max_length:
        return row
    response = response[: max_length - min(len(prompt), max_length // 2)]
    room = max_length - len(response)
    if len(prompt) > room:
        kept = prompt[len(prompt) - room :]
        prompt = [bos, *kept[1:]] if bos is not None and prompt[0] == bos else kept
    return prompt, response


def _examples(record: Record, rows: Sequence[int]) -> list[Example]:
    if record.kind == "score":
        return [Example(rows=(row,), score=s) for row, s in zip(rows, record.scores, strict=True)]
    return [
        Example(
            rows=tuple(rows),
            desirable=bool(record.desirable),
            margin=record.margin or 0.0,
            ranks=record.ranks,
        )
    ]


def _with_baselines(examples: Examples, prompts: np.ndarray) -> Examples:
    """Centres and scales scores: the baseline is the prompt's mean, or the file's for a lone response.

    Scores are divided by their standard deviation over the file, so that `score_weight` means the
    same on any scale.

    prompts: [E] a mark of each example's prompt.
    """
    scores = examples.said["score"].tolist()
    scale = statistics.pstdev(scores)
    if scale == 0:
        raise UserError("all scores are equal; they say nothing about which response is better")
    centres = np.full(len(scores), statistics.fmean(scores))
    for places in _groups(numbered(prompts)[0]):
        if len(places) > 1:
            centres[places] = statistics.fmean([scores[place] for place in places])
    return examples.replaced(score=np.array(scores) / scale, baseline=centres / scale)


def _groups(numbers: np.ndarray) -> list[np.ndarray]:
    """The places of number 0, of number 1, ..."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.cumsum(np.bincount(numbers))[:-1])


def add_mismatched(table: Table, seed: int) -> None:
    """Gives every example a row with its own prompt and the response to another one (for KTO's KL).

    Examples are put in order by prompt and each takes the response that stands one largest group
    further on, so that no response ever meets its own prompt.

    Raises UserError if more than half of the examples share one prompt.
    """
    rows, examples = TokenRows.of(table.rows), Examples.of(table.examples)
    own = examples.firsts()
    asked = b"".join(mark(rows.tokens[a:b].tobytes()) for a, b in rows.places[own, :2].tolist())
    groups = _groups(numbered(np.frombuffer(asked, MARK))[0])
    random.Random(seed).shuffle(groups)
    order, shift = np.concatenate(groups), max(map(len, groups))
    if 2 * shift > len(order):
        raise UserError(
            "KTO measures its KL on prompts with the responses to other prompts, but more than half of "
            "this feedback is about one prompt; add feedback on other prompts, or use another method"
        )
    mismatched = np.empty_like(order)
    mismatched[order] = len(rows) + np.arange(len(order))
    table.rows = rows.joined(own[order], own[np.roll(order, -shift)])
    table.examples = examples.replaced(mismatched=mismatched)
