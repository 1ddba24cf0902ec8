"""What a trained policy answers to held-out prompts: rewards, KL to the reference, lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from trimtab.feedback.batches import by_prompt
from trimtab.feedback.records import Prompt, Record, columns_of
from trimtab.feedback.sequences import Sequences
from trimtab.feedback.tokenise import encode_prompt
from trimtab.policies.language import LanguagePolicy
from trimtab.reference import reference_mode
from trimtab.rollouts.generate import Sampling, decode, generate
from trimtab.rollouts.rewards import Reward


@dataclass(frozen=True)
class Answer:
    """One sampled response to one prompt.

    `kl` is the sum over its tokens of log policy - log reference, in nats: averaged over samples it
    estimates KL(policy || reference) without bias. None without a reference.
    """

    prompt: Prompt
    response: str
    rewards: dict[str, float]
    kl: float | None
    tokens: int
    ended: bool

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def evaluate(
    policy: LanguagePolicy,
    records: Sequence[Record],
    sampling: Sampling,
    rewards: Mapping[str, Reward],
    *,
    reference: LanguagePolicy | None = None,
    seed: int = 0,
) -> list[Answer]:
    """Samples one response to each prompt and scores it with every reward.

    Args:
        records: of the kind prompt; their other columns are there for rewards that ask for them.
        reference: what the KL is measured to; a policy with an adapter is its own reference.
    """
    prompts = [record.prompt for record in records]
    ids = [encode_prompt(policy.tokenizer, prompt) for prompt in prompts]
    responses = [samples[0] for samples in generate(policy, ids, sampling, seed=seed)]
    texts = [decode(policy, response) for response in responses]
    scores = {name: reward(prompts, texts, columns_of(records)) for name, reward in rewards.items()}
    kls = _log_ratios(policy, reference, list(zip(ids, (r.tokens for r in responses), strict=True)))
    return [
        Answer(
            prompt=prompt,
            response=texts[i],
            rewards={name: values[i] for name, values in scores.items()},
            kl=None if kls is None else kls[i],
            tokens=len(responses[i].tokens),
            ended=responses[i].ended,
        )
        for i, prompt in enumerate(prompts)
    ]


@torch.no_grad()
def _log_ratios(
    policy: LanguagePolicy, reference: LanguagePolicy | None, rows: list[tuple[Any, Any]]
) -> list[float] | None:
    if reference is None and not policy.has_adapter:
        return None
    values: dict[int, float] = {}
    for chunk in by_prompt(rows, 8192, shared=policy.trunk.shares):
        sequences = Sequences.pack([rows[i] for i in chunk], policy.device)
        mine = policy.logprobs(sequences)
        with reference_mode(reference or policy):
            theirs = (reference or policy).logprobs(sequences)
        values.update(zip(chunk, (mine - theirs).sum(-1).tolist(), strict=True))
    return [values[i] for i in range(len(rows))]
