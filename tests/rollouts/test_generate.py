"""Generation against transformers' own generate, and sampling against the model's probabilities."""

from itertools import product
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from tests.models import causal_model, letter_tokenizer, policy, random_rows

from trimtab.errors import UserError
from trimtab.feedback.sequences import Sequences
from trimtab.policies.language import LanguagePolicy
from trimtab.rollouts.generate import Sampling, _at, _passed, generate

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


@pytest.mark.parametrize("vocabulary", [5, 128, 300, 384])  # within one block of 128, one, with a rest, whole
def test_every_share_of_the_whole_falls_to_the_token_that_holds_it(vocabulary: int) -> None:
    """Whole numbers as masses, one row of tokens each: share (k + 1/2) / total is the k-th of them."""
    masses = torch.randint(0, 4, (1, vocabulary), generator=torch.Generator().manual_seed(vocabulary))
    masses[:, [0, -1]], masses[:, 2] = 0, 1
    held = torch.arange(vocabulary).repeat_interleave(masses[0])
    shares = (torch.arange(len(held)) + 0.5) / len(held)
    rows = masses.float().expand(len(held), -1).contiguous()
    assert torch.equal(_at(rows, shares[:, None]), held)
    ends = torch.tensor([[0.0], [1 - 2.0**-24]])  # the least and the most that torch.rand gives
    assert _at(rows[:2], ends).tolist() == [int(held[0]), int(held[-1])]


@pytest.mark.parametrize("point", [-1e-9, 0.0, 0.5, 1.0, 2.0])
def test_where_nothing_is_nothing_is_found_whatever_the_rounding(point: float) -> None:
    """All mass stands at the third of four places; a difference of sums may fall below it, or beyond."""
    running = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert _passed(running, torch.tensor([[point]])).item() == 2


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Mistral", "GPT2", "Gemma2"])
def test_recorded_log_probs_are_those_of_training(architecture: str, temperature: float) -> None:
    """Prompts of unequal length are padded, and rows leave when they end; transformers sees each alone."""
    learner = easily_ended(architecture)
    sampling = Sampling(max_new_tokens=12, temperature=temperature, batch_size=4)
    answers = generate(learner, PROMPTS, sampling, samples=4, seed=1)
    rows = [(p, r.tokens) for p, responses in zip(PROMPTS, answers, strict=True) for r in responses]
    recorded = [torch.tensor(r.logprobs) for responses in answers for r in responses]
    assert len({len(tokens) for _, tokens in rows}) > 4 and len({len(p) for p in PROMPTS}) > 2
    with torch.no_grad():
        trained = learner.logprobs(Sequences.pack(rows), temperature)
        for (prompt, tokens), found, of_training in zip(rows, recorded, trained, strict=True):
            ids = torch.tensor([[*prompt, *tokens]])
            logits = learner.model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
            alone = logits.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-4)
            torch.testing.assert_close(found, of_training[: len(tokens)], rtol=0, atol=1e-4)


def test_recorded_log_probs_do_not_know_of_top_k_and_top_p() -> None:
    learner = policy()
    sampling = Sampling(max_new_tokens=6, top_k=3, top_p=0.5)
    answers = generate(learner, PROMPTS, sampling, samples=2)
    rows = [(p, r.tokens) for p, responses in zip(PROMPTS, answers, strict=True) for r in responses]
    with torch.no_grad():
        of_training = learner.logprobs(Sequences.pack(rows))
    for values, responses in zip(of_training.view(len(PROMPTS), 2, -1), answers, strict=True):
        for row, response in zip(values, responses, strict=True):
            torch.testing.assert_close(
                row[: len(response.tokens)], torch.tensor(response.logprobs), rtol=0, atol=1e-4
            )


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"top_k": 5, "top_p": 1e-9}])
def test_the_likeliest_token_alone_is_greedy(options: dict[str, Any]) -> None:
    learner = easily_ended("Llama")
    greedy = generate(learner, PROMPTS, Sampling(max_new_tokens=8, temperature=0.0), samples=2)
    drawn = generate(learner, PROMPTS, Sampling(max_new_tokens=8, **options), samples=2)
    assert [[r.tokens for r in of] for of in drawn] == [[r.tokens for r in of] for of in greedy]


def left_over(probabilities: list[float], top_k: int | None, top_p: float | None) -> list[float]:
    """What top-k, then top-p leave of a distribution, by their definitions (Holtzman et al. 2020, eq. 2)."""
    falling = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])[:top_k]
    total, nucleus = sum(probabilities[token] for token in falling), []
    for token in falling:  # the smallest set that has this probability
        nucleus.append(token)
        if top_p is not None and sum(probabilities[t] for t in nucleus) >= top_p * total:
            break
    total = sum(probabilities[token] for token in nucleus)
    return [p / total if token in nucleus else 0.0 for token, p in enumerate(probabilities)]


@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(4, None), (100, None), (None, 0.3), (None, 0.6), (None, 0.9), (None, 1.0), (8, 0.7), (3, 0.9)],
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_only_what_is_left_over_is_drawn_in_proportion(
    top_k: int | None, top_p: float | None, temperature: float
) -> None:
    """5000 first tokens after each of two prompts."""
    learner, count, prompts = policy(), 5000, [[0, 5, 9], [7]]
    learner.end_tokens = {10**6}
    sampling = Sampling(max_new_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
    answers = generate(learner, prompts, sampling, samples=count)
    sizes = set()
    for prompt, drawn in zip(prompts, answers, strict=True):
        with torch.no_grad():
            logits = learner.model(torch.tensor([prompt])).logits[0, -1] / temperature
        expected = left_over(logits.softmax(-1).tolist(), top_k, top_p)
        observed = [sum(r.tokens == [token] for r in drawn) for token in range(len(expected))]
        kept = [token for token, p in enumerate(expected) if p > 0]
        sizes.add(len(kept))
        assert sum(observed[token] for token in kept) == count
        total = sum(expected[token] for token in kept)
        frequencies = [expected[token] / total * count for token in kept]
        assert chisquare([observed[token] for token in kept], frequencies).pvalue > 1e-3
    assert sizes == {40} if (top_k, top_p) in ((100, None), (None, 1.0)) else max(sizes) < 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0; it must be a number above 0"),
        ({"top_k": -2}, "top_k is -2; it must be a number above 0"),
        ({"top_p": 0.0}, "top_p is 0; it must be a number above 0"),
        ({"top_p": 1.1}, "top_p is 1.1; it must be from 0 to 1"),
        ({"top_p": float("nan")}, "top_p is nan; it must be a number above 0"),
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be a number above 0"),
        ({"batch_size": 0}, "batch_size is 0; it must be a number above 0"),
    ],
)
def test_values_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**options)


def test_no_prompts_no_responses() -> None:
    assert generate(policy(), [], Sampling()) == []


def test_a_model_without_key_value_cache_is_refused() -> None:
    with pytest.raises(UserError, match="MambaForCausalLM has no key-value cache"):
        generate(policy("Mamba"), PROMPTS, Sampling(max_new_tokens=2))


def test_numbers_that_are_none_give_some_token_and_no_error() -> None:
    """The loss says what is wrong, and what to do."""
    masses = torch.full((2, 300), torch.nan)
    assert _at(masses, torch.tensor([[0.0], [0.9]])).tolist() == [299, 299]
