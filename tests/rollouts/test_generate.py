"""Generation against transformers' own generate, and sampling against the model's probabilities."""

from itertools import product
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from tests.models import causal_model, letter_tokenizer, policy, random_rows

from trimtab.errors import UserError
from trimtab.policies.language import LanguagePolicy
from trimtab.rollouts.generate import Sampling, generate

PROMPTS = [prompt for prompt, _ in random_rows(6, seed=2)]


def by_transformers(model: Any, prompt: list[int], count: int, ends: set[int]) -> list[int]:
    """The greedy response to one prompt alone."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=2,
    )
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def easily_ended(architecture: str) -> LanguagePolicy:
    """A policy for which several letters end a response, so that rows finish at different times."""
    learner = policy(architecture)
    learner.end_tokens |= set(range(4, 14))
    return learner


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Mistral", "GPT2", "Gemma2"])
def test_greedy_equals_transformers_one_by_one(architecture: str) -> None:
    learner = easily_ended(architecture)
    sampling = Sampling(max_new_tokens=10, temperature=0.0, batch_size=4)
    answers = generate(learner, PROMPTS, sampling, samples=2)
    expected = [by_transformers(learner.model, p, 10, learner.end_tokens) for p in PROMPTS]
    assert [first.tokens for first, _ in answers] == expected
    assert all(first.tokens == second.tokens for first, second in answers)
    for (answer, _), tokens in zip(answers, expected, strict=True):
        assert answer.ended == (tokens[-1] in learner.end_tokens)
    assert len({len(tokens) for tokens in expected}) > 1, "no row left early"


def test_an_adapter_generates() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        causal_model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    learner = LanguagePolicy(model, letter_tokenizer())  # new adapters change nothing yet
    sampling = Sampling(max_new_tokens=6, temperature=0.0)
    assert generate(learner, PROMPTS, sampling) == generate(policy(), PROMPTS, sampling)


def test_the_seed_decides_and_samples_differ() -> None:
    learner, sampling = policy(), Sampling(max_new_tokens=8)
    first, again, other = (generate(learner, PROMPTS, sampling, samples=3, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first != other
    assert all(len(answers) == 3 and answers[0] != answers[1] for answers in first)


def test_a_response_that_is_cut_has_not_ended() -> None:
    learner = policy()
    learner.end_tokens = {10**6}  # never
    [[answer]] = generate(learner, PROMPTS[:1], Sampling(max_new_tokens=3))
    assert len(answer.tokens) == 3 and not answer.ended


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back(training: bool) -> None:
    learner = policy()
    learner.model.train(training)
    generate(learner, PROMPTS[:1], Sampling(max_new_tokens=1))
    assert learner.model.training == training


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_frequencies_match_the_models_probabilities(temperature: float) -> None:
    """All responses of up to two tokens over a vocabulary of five, from two prompts of unequal length."""
    model = causal_model("Llama", vocab_size=5, seed=4)
    learner = LanguagePolicy(model, letter_tokenizer())
    learner.end_tokens = {1}
    prompts, count = [[0, 3], [4]], 4000
    answers = generate(learner, prompts, Sampling(max_new_tokens=2, temperature=temperature), samples=count)
    responses = [(1,), *((a, b) for a, b in product(range(5), repeat=2) if a != 1)]
    for prompt, drawn in zip(prompts, answers, strict=True):
        with torch.no_grad():
            first = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1).double()
            second = [
                (model(torch.tensor([[*prompt, a]])).logits[0, -1] / temperature).softmax(-1).double()
                for a in range(5)
            ]
        expected = [float(first[y[0]] * (second[y[0]][y[1]] if len(y) == 2 else 1)) for y in responses]
        observed = [sum(tuple(answer.tokens) == y for answer in drawn) for y in responses]
        assert sum(observed) == count
        total = sum(expected)  # 1 up to rounding, which chisquare wants exactly
        assert chisquare(observed, [e / total * count for e in expected]).pvalue > 1e-3
        assert chisquare(observed, [count / len(responses)] * len(responses)).pvalue < 1e-6


def test_no_prompts_no_responses() -> None:
    assert generate(policy(), [], Sampling()) == []


def test_a_model_without_key_value_cache_is_refused() -> None:
    with pytest.raises(UserError, match="MambaForCausalLM has no key-value cache"):
        generate(policy("Mamba"), PROMPTS, Sampling(max_new_tokens=2))
