"""Experience of a language policy: it answers prompts, a reward scores the answers."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.errors import UserError, check_bounds, check_positive
from trimtab.feedback.records import Record, columns_of
from trimtab.feedback.sequences import Ids, Sequences
from trimtab.feedback.tokenise import PLAIN_CHAT_TEMPLATE, encode_prompt
from trimtab.objectives.advantages import whiten
from trimtab.policies.base import ABSENT
from trimtab.policies.language import LanguagePolicy
from trimtab.rollouts.generate import Response, Sampling, decode, generate
from trimtab.rollouts.rewards import WeightedSum
from trimtab.rollouts.rollout import Collection, Rollout, Sample
from trimtab.room import ERRORS, Room
from trimtab.states import moved

log = logging.getLogger("trimtab")


@dataclass(frozen=True)
class CollectConfig:
    """How experience is collected: n times, as many answers to as many prompts, scored so."""

    prompts: int = 32
    """Prompts answered in each refresh, drawn without repetition until all had their turn."""
    samples: int | None = None
    """Answers to each prompt; the method's own number if not given."""
    mix: float = 0.0
    """Share of each collection that is answers of the one before, mixed with the new; 0 replaces all."""
    max_new_tokens: int = 128
    """Longest answer; one that reaches it is cut off, not ended."""
    temperature: float = 1.0
    """Of sampling and of scoring alike."""
    top_k: int | None = None
    """Draw among the most likely tokens only. Needs --biased-sampling."""
    top_p: float | None = None
    """Draw among the tokens only that together have this probability. Needs --biased-sampling."""
    biased_sampling: bool = False
    """Allow top-k and top-p: gradients are then those of another policy than the one that answers."""
    generate_batch: int = 64
    """Prompts that are answered at once; halved whenever memory runs out."""
    cut_off: Literal["score", "penalty", "bootstrap"] = "score"
    """What an answer gets that reached max_new_tokens: its score as it stands, --cut-off-score, or the
    critic's value of where it stopped."""
    cut_off_score: float = 0.0
    """The score of a cut-off answer, with --cut-off penalty."""
    clip_scores: float | None = None
    """Scores beyond this, to either side, count as this."""
    whiten_scores: bool = False
    """Bring each collection's scores to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        check_positive(self, "prompts", "samples", "generate_batch", "clip_scores")
        check_bounds(self, mix=(0, 0.99))
        if self.temperature == 0:
            raise UserError(
                "temperature is 0: without chance there is nothing to learn from; give one above 0"
            )
        if (self.top_k or self.top_p) and not self.biased_sampling:
            name = "--top-k" if self.top_k else "--top-p"
            raise UserError(
                f"{name}: answers drawn so have other probabilities than the policy that is trained, which "
                "biases every gradient; leave it out, or add --biased-sampling to do it all the same"
            )
        self.sampling()

    @property
    def kept(self) -> int:
        """Prompts of a collection whose answers are those of the one before; never all of them."""
        return min(round(self.mix * self.prompts), self.prompts - 1)

    def sampling(self) -> Sampling:
        return Sampling(
            self.max_new_tokens, self.temperature, self.generate_batch, top_k=self.top_k, top_p=self.top_p
        )


class Collector:
    """Collects experience with a random stream of its own: (seed, refresh) says what is asked and drawn."""

    unit = "tokens"
    repeats = True

    def __init__(
        self,
        policy: LanguagePolicy,
        records: Sequence[Record],
        reward: WeightedSum,
        config: CollectConfig,
        *,
        samples: int,
        max_length: int,
        seed: int,
    ) -> None:
        if policy.tokenizer.chat_template is None and any(not isinstance(r.prompt, str) for r in records):
            policy.tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
        self.policy = policy
        self.records = list(records)
        self.reward = reward
        self.config = config
        self.samples = config.samples or samples
        self.seed = seed
        self.ids = _prompt_ids(policy.tokenizer, records, max_length - config.max_new_tokens)
        self.before: Rollout | None = None
        self.room = Room(config.generate_batch, "prompts", "other answers are drawn than before")

    @property
    def rows(self) -> int:
        """Answers in a collection."""
        return self.config.prompts * self.samples

    def collect(self, refresh: int) -> Collection:
        """New answers, behind a share of those before."""
        old = self._kept(refresh)
        chosen = self._chosen(refresh)
        ids = [self.ids[i] for i in chosen]
        # one number for (seed, refresh), so that neighbouring seeds share no stream
        seed = random.Random(f"{self.seed} answers {refresh}").getrandbits(62)
        groups = self._answers(ids, seed)
        responses = [response for group in groups for response in group]
        records = [self.records[i] for i in chosen for _ in range(self.samples)]
        texts = [decode(self.policy, response) for response in responses]
        parts = self.reward.parts([r.prompt for r in records], texts, columns_of(records))
        scores = self.reward.total(parts)
        rows = [(prompt, r.tokens) for prompt, group in zip(ids, groups, strict=True) for r in group]
        rollout = self._rollout(
            Sequences.pack(rows, self.policy.device),
            [value for r in responses for value in r.logprobs],
            [r.ended for r in responses],
            scores,
        )
        by_sample = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
        read = [
            Sample(record.prompt, text, score, part)
            for record, text, score, part in zip(records, texts, scores, by_sample, strict=True)
        ]
        return Collection(rollout if old is None else Rollout.join([old, rollout]), read)

    def _answers(self, prompts: list[Ids], seed: int) -> list[list[Response]]:
        """As many at once as memory takes."""
        while True:
            sampling = replace(self.config.sampling(), batch_size=self.room.size)
            try:
                return generate(self.policy, prompts, sampling, samples=self.samples, seed=seed)
            except ERRORS as error:
                self.room.halve(error, len(prompts))

    def remember(self, rollout: Rollout) -> None:
        """Takes note of a collection with its log-probs, of which some answers may be kept."""
        self.before = rollout if self.config.kept else None

    def state(self) -> dict[str, Any]:
        """What is kept from one collection to the next; what is drawn follows from (seed, refresh)."""
        return {"before": self.before, "room": self.room.size}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.before = moved(state["before"], self.policy.device)
        self.room.size = state["room"]

    def with_rewards(self, rollout: Rollout, beta: float) -> Rollout:
        """See the function `with_rewards`."""
        return with_rewards(rollout, self.config, beta)

    def describe(self, rollout: Rollout) -> dict[str, float]:
        """See the function `describe`."""
        return describe(rollout)

    def _kept(self, refresh: int) -> Rollout | None:
        """Whole groups of the collection before, as they were when they were written."""
        if self.before is None or not self.config.kept:
            return None
        groups = self.config.prompts
        drawn = random.Random(f"{self.seed} kept {refresh}").sample(range(groups), self.config.kept)
        rows = [group * self.samples + i for group in drawn for i in range(self.samples)]
        kept = self.before.select(torch.tensor(rows, device=self.policy.device))
        told_anew = {"ref_logprobs": ABSENT, "values": ABSENT, "next_values": ABSENT}
        return replace(kept, group_size=self.samples, fresh=torch.zeros_like(kept.fresh), **told_anew)

    def _chosen(self, refresh: int) -> list[int]:
        """Which prompts: every one once before any comes again, each pass in an order of its own."""
        later = self.config.prompts - self.config.kept
        count, first = (
            (later, self.config.prompts + (refresh - 1) * later) if refresh else (self.config.prompts, 0)
        )
        epoch, place = divmod(first, len(self.records))
        chosen: list[int] = []
        while len(chosen) < count:
            order = list(range(len(self.records)))
            random.Random(f"{self.seed} prompts {epoch}").shuffle(order)
            chosen += order[place:]
            epoch, place = epoch + 1, 0
        return chosen[:count]

    def _rollout(
        self, sequences: Sequences, logprobs: list[float], ended: list[bool], scores: list[float]
    ) -> Rollout:
        device = self.policy.device
        mask = sequences.mask
        recorded = sequences.unpack(torch.tensor(logprobs, device=device))
        last = _last(mask)
        return Rollout(
            inputs=sequences,
            mask=mask,
            old_logprobs=recorded,
            rewards=torch.zeros_like(recorded),
            terminated=last & torch.tensor(ended, device=device)[:, None],
            ended=last,
            score=torch.tensor(scores, device=device, dtype=torch.float32),
            fresh=torch.ones(len(scores), dtype=torch.bool, device=device),
            group_size=self.samples,
            longest=self.config.max_new_tokens,
        )


def with_rewards(rollout: Rollout, config: CollectConfig, beta: float) -> Rollout:
    """The score on each response's last token, and the price of the KL to the reference on every token.

    r_t = -beta (log pi_old - log ref)_t, + score at the last token (Ziegler et al. 2019, eq. 2; k1). The
    KL is that of the policy that answered: a number here, through which no gradient goes.
    """
    score = rollout.score
    cut = (rollout.ended & ~rollout.terminated).any(1)
    terminated = rollout.terminated
    if config.cut_off == "penalty":
        score = torch.where(cut, config.cut_off_score, score)
    if config.clip_scores is not None:
        score = score.clamp(-config.clip_scores, config.clip_scores)
    if config.whiten_scores:
        score = whiten(score, torch.ones_like(cut))
    if config.cut_off == "bootstrap":  # the score belongs to the end, which was not reached
        score = torch.where(cut, 0.0, score)
    else:
        terminated = rollout.ended
    rewards = score[:, None] * rollout.ended
    if beta and rollout.ref_logprobs is not None:
        rewards = rewards - beta * (rollout.old_logprobs - rollout.ref_logprobs)
    return replace(rollout, rewards=rewards * rollout.mask, terminated=terminated)


def describe(rollout: Rollout) -> dict[str, float]:
    """What the new answers of a collection were like."""
    fresh, mask = rollout.fresh, rollout.mask & rollout.fresh[:, None]
    tokens = mask.sum(-1)[fresh].float()
    metrics = {
        "score": float(rollout.score[fresh].mean()),
        "entropy": -float(rollout.old_logprobs[mask].mean()),  # a sample's surprise, on average
        "length": float(tokens.mean()),
        "tokens": float(tokens.sum()),
    }
    if rollout.ref_logprobs is not None:
        log_ratios = (rollout.old_logprobs - rollout.ref_logprobs).masked_fill(~mask, 0.0)
        metrics["kl"] = float(log_ratios.sum(-1)[fresh].mean())
    return metrics


def _last(mask: Tensor) -> Tensor:
    """[B, T] true at each row's last step."""
    return mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))


def _prompt_ids(tokenizer: Any, records: Sequence[Record], longest: int) -> list[Ids]:
    """Tokens of every prompt; one that is too long loses its beginning, and how many did is logged."""
    if longest < 1:
        raise UserError("--max-new-tokens leaves no room for a prompt in --max-length; raise the latter")
    ids = [encode_prompt(tokenizer, record.prompt) for record in records]
    if long := sum(len(prompt) > longest for prompt in ids):
        log.warning(
            "%d of %d prompts lost their beginning: they have over %d tokens", long, len(ids), longest
        )
    return [_cut(prompt, longest, tokenizer.bos_token_id) for prompt in ids]


def _cut(prompt: Ids, longest: int, bos: int | None) -> Ids:
    """The prompt's end; the token that begins every text stays, as in training."""
    kept = prompt[-longest:]
    return [*prompt[:1], *kept[1:]] if prompt[0] == bos else kept
