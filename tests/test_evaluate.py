"""Sampled answers with their rewards and their KL to the reference."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from tests import tiny
from tests.models import alone
from trimtab.evaluate import evaluate
from trimtab.feedback.records import Record, as_conversation
from trimtab.feedback.tokenise import encode_prompt
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy
from trimtab.rollouts.generate import Sampling, generate

PROMPTS = ["the film is", "the cast", "a", "the music is"]
ASKED = [Record("prompt", prompt) for prompt in PROMPTS]
SAMPLING = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def policy() -> LanguagePolicy:
    return load_language_policy(ModelConfig(tiny.model_folder(), precision="fp32"), trainable=False)


@pytest.fixture(scope="module")
def reference() -> LanguagePolicy:
    return load_language_policy(ModelConfig(tiny.model_folder(1), precision="fp32"), trainable=False)


def length(prompts: object, responses: Sequence[str], columns: object = None) -> list[float]:
    return [float(len(r)) for r in responses]


def test_answers_stand_in_the_order_of_their_prompts(policy: LanguagePolicy) -> None:
    answers = evaluate(policy, ASKED, SAMPLING, {"length": length})
    assert [a.prompt for a in answers] == PROMPTS
    assert [a.rewards for a in answers] == [{"length": float(len(a.response))} for a in answers]
    assert all(a.kl is None for a in answers)
    assert all(1 <= a.tokens <= 12 and (a.ended or a.tokens == 12) for a in answers)


def test_the_kl_is_the_log_ratio_of_the_sampled_tokens(
    policy: LanguagePolicy, reference: LanguagePolicy
) -> None:
    answers = evaluate(policy, ASKED, SAMPLING, {}, reference=reference, seed=3)
    ids = [encode_prompt(policy.tokenizer, prompt) for prompt in PROMPTS]
    tokens = [r[0].tokens for r in generate(policy, ids, SAMPLING, seed=3)]
    for answer, prompt, response in zip(answers, ids, tokens, strict=True):
        with torch.no_grad():
            expected = alone(policy.model, prompt, response) - alone(reference.model, prompt, response)
        assert answer.kl == pytest.approx(float(expected.sum()), abs=1e-4)


def test_the_kl_of_a_policy_to_itself_is_zero(policy: LanguagePolicy) -> None:
    assert [a.kl for a in evaluate(policy, ASKED, SAMPLING, {}, reference=policy)] == [0.0] * 4


def test_seeds_repeat_and_differ(policy: LanguagePolicy) -> None:
    one, again, two = (evaluate(policy, ASKED, SAMPLING, {}, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert [a.response for a in one] != [a.response for a in two]


def test_an_adapter_is_its_own_reference() -> None:
    adapted = load_language_policy(ModelConfig(tiny.model_folder(), lora_rank=2, precision="fp32"))
    assert [a.kl for a in evaluate(adapted, ASKED, SAMPLING, {})] == pytest.approx([0.0] * 4, abs=1e-5)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.5)
    assert any(abs(a.kl or 0.0) > 0.1 for a in evaluate(adapted, ASKED, SAMPLING, {}))


def test_rewards_see_the_columns_of_each_prompt(policy: LanguagePolicy) -> None:
    def right(
        prompts: object, responses: Sequence[str], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> list[float]:
        assert columns is not None
        return [float(answer) for answer in columns["answer"]]

    asked = [Record("prompt", prompt, columns={"answer": n}) for n, prompt in enumerate(PROMPTS)]
    answers = evaluate(policy, asked, SAMPLING, {"right": right})
    assert [(a.prompt, a.rewards["right"]) for a in answers] == list(
        zip(PROMPTS, [0.0, 1.0, 2.0, 3.0], strict=True)
    )


def test_rows_are_json_and_keep_conversations(policy: LanguagePolicy) -> None:
    asked = [Record("prompt", as_conversation("hi"))]
    (answer,) = evaluate(policy, asked, SAMPLING, {"length": length})
    assert answer.row()["prompt"] == ({"role": "user", "content": "hi"},)
