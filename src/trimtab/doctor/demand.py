"""How many tokens a run asks of the machine: in its largest micro-batch, in a step, and in all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.doctor.measure import largest_part
from trimtab.feedback.records import Record
from trimtab.feedback.sequences import Ids, Sequences
from trimtab.feedback.tokenise import PLAIN_CHAT_TEMPLATE, encode, encode_prompt
from trimtab.methods import Method
from trimtab.methods.base import OnlineMethod
from trimtab.online import OnlineConfig
from trimtab.policies.packing import Packing
from trimtab.rollouts.collect import CollectConfig
from trimtab.train import OptimiserConfig, RunConfig, total_steps

MANY = (
    256  # pieces of feedback that are tokenised to learn how long the longest are, and as many for the mean
)
KEPT = 8_192  # tokens that are packed to learn how many prompts are shared


@dataclass(frozen=True)
class Demand:
    """What a run asks for.

    Attributes:
        longest: some of the pieces of feedback with the most text, of different prompts first.
        part: tokens of the largest micro-batch, a shared prompt counted with each response.
        row: tokens of the longest piece of feedback, which is never cut in two.
        step: tokens of an average step.
        whole: tokens of the whole run.
        once: tokens that are read once without gradient: for the reference's log-probs.
        read, predicted: share of the tokens that are read (shared prompts once), and that are responses.
        sequences: of one piece of feedback, in one micro-batch.
        answers: tokens that generation holds at once, of online methods.
    """

    longest: tuple[Record, ...]
    part: int
    row: int
    step: int
    whole: int
    once: int
    read: float
    predicted: float
    sequences: int
    answers: int = 0


def demand(
    method: Method[Any],
    records: Sequence[Record],
    tokenizer: Any,
    run: OptimiserConfig,
    collect: CollectConfig,
) -> Demand:
    """records: of the kind that the method takes, at least one."""
    if tokenizer.chat_template is None and any(not isinstance(r.prompt, str) for r in records):
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    if isinstance(method, OnlineMethod):
        return _online(method, records, tokenizer, run, collect)
    assert isinstance(run, RunConfig)
    longest = _longest(records)
    rows = [_rows(record, tokenizer, run.max_length) for record in longest]
    twice = 2 if method.needs_mismatched else 1  # about as long as the rows themselves
    tokens = sorted((twice * _tokens(row) for row in rows), reverse=True)
    some = records[:: max(1, len(records) // MANY)]
    mean = twice * sum(_tokens(_rows(r, tokenizer, run.max_length)) for r in some) / len(some)
    size = min(run.batch_size, len(records))
    read, predicted = _shares([row for part in rows for row in part])
    return Demand(
        longest=tuple(longest),
        part=largest_part(tokens[:size], run.batch_tokens),
        row=tokens[0],
        step=round(size * mean),
        whole=round(total_steps(run, len(records)) * size * mean),
        once=round(len(records) * mean) if method.needs_reference else 0,
        read=read,
        predicted=predicted / twice,
        sequences=twice * max(len(record.responses) for record in longest),
    )


def _online(
    method: OnlineMethod,
    records: Sequence[Record],
    tokenizer: Any,
    run: OptimiserConfig,
    collect: CollectConfig,
) -> Demand:
    """Answers as long as they may become."""
    new, samples = collect.max_new_tokens, collect.samples or method.samples
    longest = _longest(records)
    some = records[:: max(1, len(records) // MANY)]
    most, mean = (
        [min(run.max_length, len(encode_prompt(tokenizer, record.prompt)) + new) for record in part]
        for part in (longest, some)
    )
    answers = collect.prompts * samples
    refreshes = run.refreshes if isinstance(run, OnlineConfig) else OnlineConfig().refreshes
    step = round(answers * sum(mean) / len(mean))
    tokens = sorted((count for count in most for _ in range(samples)), reverse=True)
    groups = [([0] * max(1, count - new), [0] * new) for count in most for _ in range(samples)]
    read, predicted = _shares(groups)
    return Demand(
        longest=tuple(longest),
        part=largest_part((tokens * answers)[:answers], run.batch_tokens),
        row=tokens[0],
        step=step,
        whole=step * refreshes,
        once=0,
        read=read,
        predicted=predicted,
        sequences=1,
        answers=min(collect.prompts, collect.generate_batch) * samples * tokens[0],
    )


def _longest(records: Sequence[Record]) -> list[Record]:
    """At most MANY, by letters; those whose prompt stands further up come last."""
    ordered = sorted(records, key=lambda r: -len(str(r.prompt)) - sum(map(len, r.responses)))
    first = {record.prompt: record for record in reversed(ordered)}
    several = [record for record in ordered if first[record.prompt] is not record]
    own = [record for record in ordered if first[record.prompt] is record]
    return [*own, *several][:MANY]


def _rows(record: Record, tokenizer: Any, max_length: int) -> list[tuple[Ids, Ids]]:
    return encode(
        [(record.prompt, response) for response in record.responses], tokenizer, max_length=max_length
    )


def _tokens(rows: Sequence[tuple[Ids, Ids]]) -> int:
    return sum(len(prompt) + len(response) for prompt, response in rows)


def _shares(rows: Sequence[tuple[Ids, Ids]]) -> tuple[float, float]:
    """Of the tokens: how many are read, and how many are of responses."""
    kept, count = [], 0
    for row in rows:
        kept.append(row)
        count += _tokens([row])
        if count > KEPT:
            break
    sequences = Sequences.pack(kept)
    return len(Packing.of(sequences).read) / count, int(sequences.response_lengths.sum()) / count
