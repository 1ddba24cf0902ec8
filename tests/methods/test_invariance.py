"""Whatever the micro-batch size, packed or padded: each method's loss and gradient are the same to 1e-5."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.models import causal_model, classifier, gradients, letter_tokenizer
from torch import Tensor

from trimtab.feedback.batches import Table
from trimtab.feedback.records import Kind, Record
from trimtab.feedback.sequences import Sequences
from trimtab.methods import METHODS, find
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.reward_model import RewardModel
from trimtab.train import RunConfig, backward, make_table, parts_of

PROMPTS = ["the film ", "a cast ", "it was the best of times. it ", "so ", "plots "]
RESPONSES = ["is a joy", "is dull and far too long for its plot", "ends", "moves us"]


def records(kind: Kind) -> list[Record]:
    """Five pieces of feedback of very unequal length."""
    rotated = [tuple(RESPONSES[(i + j) % 4] for j in range(4)) for i in range(5)]
    made: dict[Kind, Any] = {
        "demonstration": lambda p, r, i: Record("demonstration", p, r[:1]),
        "pair": lambda p, r, i: Record("pair", p, r[:2], margin=0.5 * i),
        "thumbs": lambda p, r, i: Record("thumbs", p, r[:1], desirable=i % 2 == 0),
        "ranking": lambda p, r, i: Record("ranking", p, r[: 2 + i % 3], ranks=(1, 0, 0, 2)[: 2 + i % 3]),
        "score": lambda p, r, i: Record("score", p, r[:2], scores=(float(i), -1.0)),
    }
    return [made[kind](p, r, i) for i, (p, r) in enumerate(zip(PROMPTS, rotated, strict=True))]


def learner(name: str, architecture: str) -> Any:
    if find(name).trains == "reward model":
        return RewardModel(classifier(architecture), letter_tokenizer())
    return LanguagePolicy(causal_model(architecture), letter_tokenizer())


def table(name: str, architecture: str) -> Table:
    """The method's own data, with the log-probs of another model as the reference."""
    method = find(name)
    made = make_table(method(), records(method.data), letter_tokenizer(), RunConfig(max_length=64))
    if method.needs_reference:
        reference = LanguagePolicy(causal_model(architecture, seed=5), letter_tokenizer())
        with torch.no_grad():
            singles = [reference.logprobs(Sequences.pack([row]))[0] for row in made.rows]
        made.ref_logprobs = singles
    return made


def step(name: str, policy: Any, data: Table, batch_tokens: int) -> tuple[float, Tensor, int]:
    """Loss and gradient of one optimiser step over all the data, and in how many parts it was done."""
    parts = parts_of(data, list(range(len(data))), batch_tokens, policy.device)
    policy.model.zero_grad()
    method = find(name)()
    with torch.no_grad():
        parts = method.prepare(policy, parts)
    loss = float(backward(method, policy, parts)["loss"])
    return loss, gradients(list(policy.model.parameters())), len(parts)


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "GPT2", "Mistral", "Gemma2"])
@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if not method.online))
def test_micro_batches_and_padding_change_nothing(name: str, architecture: str) -> None:
    policy, data = learner(name, architecture), table(name, architecture)
    loss, gradient, parts = step(name, policy, data, batch_tokens=10**6)
    assert parts == 1
    assert float(gradient.abs().max()) > 1e-3
    results = [step(name, policy, data, batch_tokens) for batch_tokens in (1, 100)]
    assert results[0][2] == len(data)
    assert 1 < results[1][2] < len(data)
    policy.trunk.packed = False
    results += [step(name, policy, data, batch_tokens) for batch_tokens in (1, 10**6)]
    for other_loss, other_gradient, _ in results:
        assert other_loss == pytest.approx(loss, rel=1e-5, abs=1e-5)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-4, atol=1e-5)


def test_a_mean_of_means_would_be_caught() -> None:
    """SFT by a mean over each response, then over responses, is another loss on these data."""
    policy, data = learner("sft", "Llama"), table("sft", "Llama")
    loss, _, _ = step("sft", policy, data, batch_tokens=10**6)
    of_each = [step("sft", policy, replace(data, examples=[e]), 10**6)[0] for e in data.examples]
    assert abs(sum(of_each) / len(of_each) - loss) > 1e-3
