"""Log-probs, entropy and values of responses, for every kind of critic, against transformers alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny
from tests.models import gradients, pack, random_rows
from torch import Tensor, nn

from trimtab.feedback.sequences import Ids
from trimtab.objectives.distributions import categorical_entropy
from trimtab.policies.actor_critic import ActorCritic, Critic, head_critic, model_critic
from trimtab.policies.adapters import adapter_critic
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy, load_reward_model

ROWS = random_rows(5, seed=5)
TEMPERATURE = 0.7


@dataclass
class Case:
    """A policy, and the hidden states [1, T] -> [T, H] that its critic reads, by transformers alone."""

    actor: LanguagePolicy
    critic: Critic
    hidden: Callable[[Tensor], Tensor]

    @property
    def policy(self) -> ActorCritic:
        return ActorCritic(self.actor, self.critic, TEMPERATURE)


def config(**options: Any) -> ModelConfig:
    return ModelConfig(tiny.model_folder(), precision="fp32", device="cpu", **options)


def last_hidden(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]


def with_head() -> Case:
    actor = load_language_policy(config())
    return Case(actor, head_critic(actor), lambda ids: last_hidden(actor.model, ids))


def with_model() -> Case:
    model = load_reward_model(config(), seed=1)
    return Case(
        load_language_policy(config()), model_critic(model), lambda ids: last_hidden(model.model, ids)
    )


def with_adapter() -> Case:
    actor = load_language_policy(config(lora_rank=2))
    shake(actor.parameters())

    def hidden(ids: Tensor) -> Tensor:
        actor.model.set_adapter("critic")
        states = last_hidden(actor.model, ids)
        actor.model.set_adapter("default")
        return states

    return Case(actor, adapter_critic(actor, config(lora_rank=2), seed=1), hidden)


KINDS = pytest.mark.parametrize("kind", [with_head, with_model, with_adapter])


def shake(parameters: list[nn.Parameter]) -> None:
    """Moves what starts at zero, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def distributions_alone(model: Any, prompt: Ids, response: Ids) -> Tensor:
    """[R, V] log-probs at the temperature, by transformers alone: no batch, no padding."""
    ids = torch.tensor([[*prompt, *response]])
    return (model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / TEMPERATURE).log_softmax(-1)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@KINDS
@pytest.mark.parametrize("packed", [True, False])
@torch.no_grad()
def test_values_stand_before_and_after_each_token(kind: Callable[[], Case], packed: bool) -> None:
    case, sequences = kind(), pack(ROWS)
    shake(case.critic.own)
    case.actor.trunk.packed = packed
    now = case.policy.evaluate(sequences)
    longest = max(len(response) for _, response in ROWS)
    assert now.values.shape == now.next_values.shape == now.logprobs.shape == (len(ROWS), longest)
    for row, (prompt, response) in enumerate(ROWS):
        hidden = case.hidden(torch.tensor([[*prompt, *response]]))[len(prompt) - 1 :]
        states = case.critic.head(hidden)[:, 0]
        assert len(states) == len(response) + 1
        assert_close(now.values[row, : len(response)], states[:-1])
        assert_close(now.next_values[row, : len(response)], states[1:])
        assert not now.values[row, len(response) :].any()
        assert not now.next_values[row, len(response) :].any()
        assert torch.equal(now.values[row, 1 : len(response)], now.next_values[row, : len(response) - 1])
    assert now.values[sequences.mask].std() > 0.01


@KINDS
@torch.no_grad()
def test_no_response_knows_of_the_others(kind: Callable[[], Case]) -> None:
    case = kind()
    shake(case.critic.own)
    together = case.policy.evaluate(pack(ROWS), entropy=True)
    turned = case.policy.evaluate(pack(ROWS[::-1]), entropy=True)
    for row, (prompt, response) in enumerate(ROWS):
        alone = case.policy.evaluate(pack([(prompt, response)]), entropy=True)
        for name in ("logprobs", "entropy", "values", "next_values"):
            expected = getattr(alone, name)[0]
            assert_close(getattr(together, name)[row, : len(response)], expected)
            assert_close(getattr(turned, name)[len(ROWS) - 1 - row, : len(response)], expected)


@KINDS
@torch.no_grad()
def test_logprobs_and_entropy_are_those_of_the_temperature(kind: Callable[[], Case]) -> None:
    case, sequences = kind(), pack(ROWS)
    now = case.policy.evaluate(sequences, entropy=True)
    whole = torch.cat([distributions_alone(case.actor.model, *row) for row in ROWS])
    chosen = torch.tensor([token for _, response in ROWS for token in response])
    assert_close(now.logprobs[sequences.mask], whole[torch.arange(len(chosen)), chosen])
    assert_close(case.policy.evaluate(sequences).logprobs, now.logprobs)
    assert_close(now.entropy[sequences.mask], -(whole.exp() * whole).sum(-1))
    assert_close(now.entropy[sequences.mask], categorical_entropy(case.policy.distributions(sequences)))
    assert_close(case.policy.distributions(sequences), whole)
    assert not now.logprobs[~sequences.mask].any() and not now.entropy[~sequences.mask].any()


def test_what_was_not_asked_for_is_absent() -> None:
    case, sequences = with_head(), pack(ROWS)
    bare = ActorCritic(case.actor).evaluate(sequences)
    assert bare.entropy is bare.values is bare.next_values is None
    assert torch.equal(bare.logprobs, ActorCritic(case.actor).evaluate(sequences, entropy=True).logprobs)


@KINDS
def test_each_parameter_is_trained_once(kind: Callable[[], Case]) -> None:
    case = kind()
    policy = case.policy
    count = len(policy.actor.parameters())
    assert len(policy.named_parameters()) == count
    assert len(policy.parameters()) == count + len(case.critic.own)
    assert len({id(p) for p in policy.parameters()}) == len(policy.parameters())
    shake(case.critic.own)
    now = policy.evaluate(pack(ROWS))
    now.values.sum().backward(retain_graph=True)
    assert all(p.grad is not None for p in policy.critic_parameters())
    assert bool(gradients(list(policy.named_parameters().values())).any()) == (kind is with_head)
    now.logprobs.sum().backward()
    moved = [name for name, p in policy.named_parameters().items() if p.grad is not None and p.grad.any()]
    assert len(moved) == count


@pytest.mark.parametrize("kind", [with_head, with_adapter])
def test_a_critic_that_starts_at_zero_leaves_the_trunk_alone(kind: Callable[[], Case]) -> None:
    policy = kind().policy
    policy.evaluate(pack(ROWS)).values.sum().backward()
    *others, weight, bias = policy.critic_parameters()
    assert not gradients([*policy.named_parameters().values(), *others]).any()
    assert gradients([weight]).any() and float(bias.grad) == sum(len(response) for _, response in ROWS)


@KINDS
def test_policy_and_critic_are_saved(kind: Callable[[], Case], tmp_path: Path) -> None:
    case = kind()
    shake(case.critic.own)
    case.policy.save(tmp_path)
    again = load_language_policy(ModelConfig(str(tmp_path), precision="fp32", device="cpu"), trainable=False)
    assert_close(again.logprobs(pack(ROWS)), case.actor.logprobs(pack(ROWS)))
    if kind is with_model:
        critic = ModelConfig(str(tmp_path / "critic"), precision="fp32", device="cpu")
        weight = load_reward_model(critic, trainable=False).model.score.weight
    else:
        weight = load_file(tmp_path / "critic" / "head.safetensors")["weight"]
    assert torch.equal(weight, case.critic.head.weight)
