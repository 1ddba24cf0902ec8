"""What the numeric checks look at: the model as it will be trained, and a few short rows of the data."""

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.doctor.findings import Finding, Level
from trimtab.errors import UserError
from trimtab.feedback.batches import Table
from trimtab.feedback.records import Record
from trimtab.feedback.sequences import Ids, Sequences
from trimtab.feedback.tokenise import PLAIN_CHAT_TEMPLATE, encode, encode_prompt
from trimtab.feedback.views import ViewOptions, convert
from trimtab.methods import Method
from trimtab.policies.load import ModelConfig, load_language_policy, resolve_model
from trimtab.policies.model import OWN
from trimtab.policies.reward_model import RewardModel
from trimtab.rollouts.decoding import left_padded
from trimtab.rollouts.generate import Response, Sampling, generate
from trimtab.train import RunConfig, make_table

GROUP = "numerics"
FEW = 4  # pieces of feedback; short, middling and long ones
LONGEST = 128  # tokens of prompt and response together
NEW_TOKENS = 16  # of an answer that is sampled
EXACT = 1e-3  # nats; fp32 rounds log-probs of real models by 1e-5 to 1e-4
ROUNDED = 5e-2  # nats, on average; bf16 keeps 8 bits, and rounds single log-probs by up to some tenths


@dataclass
class Bench:
    """The model and the rows that are tried on it.

    Attributes:
        model: a LanguagePolicy or a RewardModel.
        method: None if it is not known.
        records: all of the user's feedback.
        rows: prompt and response tokens of a few of them; responses of the model where the data has none.
        views: how the method's kind of feedback is made of the data's.
        table: the same as the method takes it; None where it learns online, or there is no method.
        why_no_table: where a method should have one.
        temperature: of sampling.
    """

    model: Any
    config: ModelConfig
    run: RunConfig
    method: Method[Any] | None
    records: list[Record]
    rows: list[tuple[Ids, Ids]]
    views: ViewOptions | None = None
    table: Table | None = None
    why_no_table: str = "no --method is given"
    temperature: float = 1.0

    @property
    def sequences(self) -> Sequences:
        return Sequences.pack(self.rows, self.model.device)

    @property
    def is_exact(self) -> bool:
        """Whether the weights are in fp32, so that two ways to the same number differ by little."""
        return next(self.model.model.parameters()).dtype == torch.float32

    @property
    def unit(self) -> str:
        """Of `values`."""
        return "points of score" if isinstance(self.model, RewardModel) else "nats a token"


def make_bench(
    model: Any,
    config: ModelConfig,
    records: Rows[Record],
    run: RunConfig,
    *,
    method: Method[Any] | None = None,
    views: ViewOptions | None = None,
    temperature: float = 1.0,
) -> Bench:
    """A few of the rows, cut to LONGEST tokens, beside the model.

    Raises UserError if the records cannot be what the method takes.
    """
    tokenizer = model.tokenizer
    if tokenizer.chat_template is None and any(not isinstance(r.prompt, str) for r in records):
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    bench = Bench(model, config, run, method, list(records), [], views, temperature=temperature)
    short = replace(run, max_length=min(run.max_length, LONGEST))
    kind = records[0].kind if method is None else method.data
    if kind == "prompt":
        bench.why_no_table = "it learns from answers that it samples"
        few = _few(convert(list(records), "prompt", views))
        bench.rows = _answered(bench, [encode_prompt(tokenizer, r.prompt)[-LONGEST:] for r in few])
        return bench
    if method is not None:
        few = _few(convert(list(records), method.data, views))
        try:
            bench.table = make_table(method, few, tokenizer, short)
            bench.rows = list(bench.table.rows)
            return bench
        except UserError as error:  # what is true of all the feedback may not be of so little of it
            bench.why_no_table = f"the few rows that were taken do not suit it: {error}"
    else:
        few = _few([record for record in records if record.responses])
    texts = [(record.prompt, response) for record in few for response in record.responses]
    bench.rows = encode(texts, tokenizer, max_length=short.max_length)
    return bench


def _few(records: Rows[Record]) -> list[Record]:
    """FEW records from the shortest to the longest, of different prompts as far as there are."""
    ordered = sorted(records, key=lambda r: sum(map(len, r.responses)) or len(str(r.prompt)))
    last = len(ordered) - 1
    chosen: list[Record] = []
    for place in range(FEW):
        start = round(place * last / (FEW - 1))
        taken = {record.prompt for record in chosen}
        near = sorted(range(max(0, start - 50), min(last, start + 50) + 1), key=lambda i: abs(i - start))
        new = [ordered[i] for i in near if ordered[i] not in chosen]
        chosen += ([record for record in new if record.prompt not in taken] or new)[:1]
    scores = {score for record in chosen for score in record.scores}
    if len(scores) == 1:  # equal ones say nothing, and are refused
        chosen += [r for r in ordered if any(score not in scores for score in r.scores)][:1]
    return chosen


def sampled(bench: Bench, prompts: Rows[Ids], samples: int = 2) -> list[tuple[Ids, Response]]:
    """Answers of the policy, each with its prompt."""
    sampling = Sampling(NEW_TOKENS, bench.temperature, batch_size=len(prompts))
    found = generate(bench.model, prompts, sampling, samples=samples, seed=bench.run.seed)
    return [(prompt, response) for prompt, group in zip(prompts, found, strict=True) for response in group]


def _answered(bench: Bench, prompts: list[Ids]) -> list[tuple[Ids, Ids]]:
    """Rows of a policy that answers; of a model that cannot, prompts cut in two."""
    try:
        return [(prompt, response.tokens) for prompt, response in sampled(bench, prompts)]
    except UserError:
        return [(p[: len(p) // 2], p[len(p) // 2 :]) for p in prompts if len(p) > 1]


def values(model: Any, sequences: Sequences) -> Tensor:
    """The log-probs of all response tokens [M], or the scores [S] of a reward model."""
    if isinstance(model, RewardModel):
        return model.scores(sequences)
    found: Tensor = model.logprobs(sequences)[sequences.mask]
    return found


def values_at(model: Any, hidden: Tensor, sequences: Sequences) -> Tensor:
    """`values` from hidden states [N, H]."""
    if isinstance(model, RewardModel):
        scores: Tensor = model.trunk.hf.score(hidden[sequences.last_index])[:, 0].float()
        return scores
    found: Tensor = model.logprobs_at(hidden, sequences)[sequences.mask]
    return found


@contextmanager
def exactly(model: Any) -> Iterator[None]:
    """Within it matrix products are in the precision of the weights."""
    before, model.autocast = model.autocast, None
    try:
        yield
    finally:
        model.autocast = before


@torch.no_grad()
def by_transformers(model: Any, sequences: Sequences, side: str) -> Tensor:
    """`values` by transformers' own forward pass; side: where padding stands, or alone for no batches."""
    decoder = model.trunk.decoder
    rows = sequences.tokens.split(sequences.lengths.tolist())
    if side == "alone":
        hidden = [decoder(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows]
        return values_at(model, torch.cat(hidden), sequences)
    left = left_padded([row.tolist() for row in rows], model.device)
    tokens, mask = left if side == "left" else sequences.padded()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = decoder(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)
    return values_at(model, out.last_hidden_state[mask], sequences)


@dataclass(frozen=True)
class Gap:
    """How far two computations of the same numbers are apart; infinite where one is not a number."""

    most: float
    mean: float

    @classmethod
    def of(cls, one: Tensor, other: Tensor) -> "Gap":
        gaps = (one.double() - other.double()).abs()
        if not bool(gaps.isfinite().all()):
            return cls(math.inf, math.inf)
        return cls(float(gaps.max()), float(gaps.mean()))


def judged(
    check: str, bench: Bench, gap: Gap, what: str, *, means: str, advice: str, level: Level = "error"
) -> Finding:
    """Whether a gap is within what rounding explains: EXACT at most in fp32, ROUNDED on average in bf16.

    Args:
        what: the two computations, as the subject of a sentence: "packed rows and single ones".
        means: what follows from a gap that is too large.
    """
    found, tolerance = (gap.most, EXACT) if bench.is_exact else (gap.mean, ROUNDED)
    how = "at most" if bench.is_exact else "on average"
    said = f"{what} differ by {found:.2g} {bench.unit} {how}; {tolerance:g} is admitted"
    numbers = {"distance": found, "tolerance": tolerance, "most": gap.most, "mean": gap.mean}
    if found <= tolerance:
        return Finding(GROUP, check, "ok", said, values=numbers)
    return Finding(GROUP, check, level, f"{said}: {means}", advice, values=numbers)


def skipped(check: str, why: str) -> Finding:
    return Finding(GROUP, check, "skipped", why)


Check = Callable[[Bench], Finding]


def reference_of(bench: Bench) -> Any:
    """The frozen reference, as training takes it: the model itself, or the one that --reference names."""
    if bench.config.reference is None:
        return bench.model
    start = replace(bench.config, model=resolve_model(bench.config.reference), reference=None, lora_rank=0)
    return load_language_policy(start, trainable=False)


@contextmanager
def moved_adapter(model: Any) -> Iterator[None]:
    """Within it the adapter's B is not zero, as it is at first: a lost adapter would not be seen."""
    second = [p for key, p in model.model.named_parameters() if f".lora_B.{OWN}." in key]
    with torch.no_grad():
        for number, weight in enumerate(second):
            generator = torch.Generator().manual_seed(number)
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator).to(weight))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight in second:
                weight.zero_()
