"""Each method on log-probs that are written down: which tokens it sums, averages or leaves out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.errors import UserError
from trimtab.feedback.batches import Demonstrations, Pairs, Rankings, Scored, Thumbs
from trimtab.feedback.sequences import Sequences
from trimtab.methods import METHODS, find
from trimtab.policies.base import Evaluation
from trimtab.rollouts.rollout import Rollout


class Fixed:
    """A policy and scorer whose answers are given."""

    device = torch.device("cpu")

    def __init__(self, *answers: list[Any]) -> None:
        self.answers = [torch.tensor(a) for a in answers]

    def logprobs(self, sequences: Sequences) -> Tensor:
        return self.answers.pop(0)

    scores = logprobs


# a chosen response of three tokens and a rejected one of two
SEQUENCES = Sequences.pack([([9], [1, 2, 3]), ([9], [4, 5])])
LOGPROBS = [[-1.0, -2.0, -3.0], [-0.5, -0.5, 0.0]]
REF = torch.tensor([[-1.5, -2.0, -3.5], [-0.5, -1.0, 0.0]])
PAIRS = Pairs(sequences=SEQUENCES, ref_logprobs=REF, margin=torch.tensor([0.25]))
# log-ratios: chosen 0.5 + 0 + 0.5 = 1 (mean 1/3), rejected 0 + 0.5 = 0.5 (mean 1/4)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def loss(name: str, batch: Any, answer: list[Any], **parameters: Any) -> list[float]:
    losses, metrics = find(name)(**parameters).loss(Fixed(answer), batch)
    assert all(isinstance(value, Tensor) for value in metrics.values())
    return losses.tolist()  # type: ignore[no-any-return]


def test_dpo_sums_log_ratios() -> None:
    assert loss("dpo", PAIRS, LOGPROBS, beta=2.0) == pytest.approx([softplus(-1.0)])
    smoothed = loss("dpo", PAIRS, LOGPROBS, beta=2.0, label_smoothing=0.1)
    assert smoothed == pytest.approx([0.9 * softplus(-1.0) + 0.1 * softplus(1.0)])


def test_ipo_sums_or_averages() -> None:
    assert loss("ipo", PAIRS, LOGPROBS, beta=0.5) == pytest.approx([(0.5 - 1) ** 2])
    assert loss("ipo", PAIRS, LOGPROBS, beta=0.5, per_token=True) == pytest.approx([(1 / 12 - 1) ** 2])


def test_dpo_kl_takes_the_kl_of_both_responses_token_by_token() -> None:
    def term(x: float) -> float:
        return math.exp(x) * x - math.exp(x) + 1

    expected = softplus(-0.5) + 0.4 * (2 * term(0.5) + term(0.5)) / 2  # padding adds nothing
    assert loss("dpo_kl", PAIRS, LOGPROBS, beta=1.0, kl_weight=0.4) == pytest.approx([expected])


def test_orpo_averages_over_each_response() -> None:
    def odds(x: float) -> float:
        return x - math.log(1 - math.exp(x))

    expected = 2.0 + 0.3 * softplus(-(odds(-2.0) - odds(-0.5)))
    assert loss("orpo", PAIRS, LOGPROBS, beta=0.3) == pytest.approx([expected])


def test_sft_counts_every_token_once() -> None:
    batch = Demonstrations(sequences=SEQUENCES)
    assert find("sft")().units(batch) == 5
    assert loss("sft", batch, LOGPROBS) == [1.0, 2.0, 3.0, 0.5, 0.5]


def test_score_weighted_sums_log_probs() -> None:
    batch = Scored(sequences=SEQUENCES, score=torch.tensor([1.0, -1.0]), baseline=torch.tensor([0.5, 0.5]))
    assert loss("score_weighted", batch, LOGPROBS, score_weight=0.5) == pytest.approx(
        [1.25 * 6.0, 0.25 * 1.0]
    )


def test_kto_measures_its_reference_point_once_for_all_micro_batches() -> None:
    def batch(desirable: bool, ref: float) -> Thumbs:
        sequences = Sequences.pack([([9], [1])])
        return Thumbs(
            sequences=sequences,
            ref_logprobs=torch.tensor([[-1.0]]),
            desirable=torch.tensor([desirable]),
            mismatched=sequences,
            mismatched_ref_logprobs=torch.tensor([[ref]]),
        )

    method = find("kto")(beta=2.0, desirable_weight=1.0, undesirable_weight=0.5)
    batches = method.prepare(Fixed([[-1.0]], [[-1.0]]), [batch(True, -2.0), batch(False, -1.5)])
    assert [float(b.kl) for b in batches] == [0.75, 0.75]  # mean of 1 and 0.5
    up, _ = method.loss(Fixed([[-0.5]]), batches[0])
    down, _ = method.loss(Fixed([[-0.5]]), batches[1])
    assert up.tolist() == pytest.approx([1 / (1 + math.exp(2 * (0.5 - 0.75)))])
    assert down.tolist() == pytest.approx([0.5 / (1 + math.exp(2 * (0.75 - 0.5)))])
    clamped = method.prepare(Fixed([[-3.0]]), [batch(True, -1.0)])
    assert float(clamped[0].kl) == 0.0


def test_kto_without_mismatched_pairs_is_refused() -> None:
    batch = Thumbs(sequences=SEQUENCES, ref_logprobs=REF, desirable=torch.tensor([True, False]))
    with pytest.raises(UserError, match="mismatched"):
        find("kto")().prepare(Fixed(), [batch])


def test_reward_model_options() -> None:
    def of(**options: Any) -> list[float]:
        return loss("reward_model", PAIRS, [1.0, 0.5], **options)

    assert of() == pytest.approx([softplus(-0.5)])
    assert of(margin=True) == pytest.approx([softplus(-0.25)])
    assert of(center=0.1) == pytest.approx([softplus(-0.5) + 0.1 * 2.25])


def test_ranking_accuracy_counts_what_is_ordered() -> None:
    """A > B = C, scored A 1, B 2, C 0: of the pairs A-B and A-C one is right."""
    batch = Rankings(
        sequences=Sequences.pack([([9], [1])] * 3),
        ranks=torch.tensor([[0, 1, 1]]),
        present=torch.ones(1, 3, dtype=torch.bool),
    )
    losses, metrics = find("reward_ranking")().loss(Fixed([1.0, 2.0, 0.0]), batch)
    assert sorted(metrics["accuracy"].tolist()) == [0.0, 1.0]
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(1.0) + math.exp(-1.0))])


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("dpo", "beta", 0.0),
        ("dpo", "label_smoothing", 0.6),
        ("ipo", "beta", -1.0),
        ("kto", "desirable_weight", -1.0),
        ("dpo_kl", "kl_weight", -0.1),
        ("orpo", "beta", float("nan")),
        ("score_weighted", "score_weight", -1.0),
    ],
)
def test_parameters_out_of_bounds_are_refused(name: str, parameter: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{parameter}.*takes values from"):
        find(name)(**{parameter: value})


def test_the_registry() -> None:
    offline = "sft reward_model reward_ranking dpo ipo kto orpo dpo_kl score_weighted"
    assert set(offline.split()) <= set(METHODS)
    for name, method in METHODS.items():
        assert method.name == name
        assert method.source and method.when and method.learning_rate > 0
        if method.strength:
            assert method.strength in method.__dataclass_fields__
    with pytest.raises(UserError, match="unknown method 'dop'; did you mean 'dpo'"):
        find("dop")


class FixedActor:
    """A policy whose log-probs and values are given."""

    def __init__(self, logprobs: Tensor, values: Tensor | None = None) -> None:
        self.out = Evaluation(logprobs, values=values)

    def evaluate(self, inputs: Any, *, entropy: bool = False) -> Evaluation:
        return self.out


def experience(**fields: Any) -> Rollout:
    """Two answers to one prompt, of three tokens and of one, each old log-prob -1."""
    inputs = Sequences.pack([([9], [1, 2, 3]), ([9], [4])])
    mask = inputs.mask
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    values: dict[str, Any] = {
        "old_logprobs": -1.0 * mask,
        "ref_logprobs": -1.0 * mask,
        "rewards": torch.tensor([[0.0, 0.0, 4.0], [2.0, 0.0, 0.0]]),
        "score": torch.tensor([4.0, 2.0]),
    }
    return Rollout(
        inputs=inputs,
        mask=mask,
        terminated=last,
        ended=last,
        fresh=torch.ones(2, dtype=torch.bool),
        group_size=2,
        longest=10,
        coefficients={"beta": 0.5, "kl_penalty": 3.0, "clip": 0.2},
        **{**values, **fields},
    )


# ratios 2, 1, 1/2 and 1.1; beyond 1.2 and below 0.8 they are clipped
RATIOS = torch.tensor([[2.0, 1.0, 0.5], [1.1, 1.0, 1.0]])
MOVED = (RATIOS.log() - 1) * experience().mask


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [-(1.2 + 1 + 0.5) / 3, 1.1]),  # of each answer
        ({"aggregation": "dr_grpo"}, [-(1.2 + 1 + 0.5) / 10, 1.1 / 10]),  # over the longest there can be
        ({"aggregation": "dapo"}, [-1.2, -1.0, -0.5, 1.1]),  # of all tokens
        ({"clip_high": 0.5}, [-(1.5 + 1 + 0.5) / 3, 1.1]),
    ],
)
def test_grpo_takes_one_of_three_means(parameters: dict[str, Any], expected: list[float]) -> None:
    """Scores 4 and 2 are advantages 1 and -1."""
    method: Any = find("grpo")(scale=False, kl="reward", **parameters)
    batch = method.advantages(experience())
    assert batch.advantages.tolist() == [[1, 1, 1], [-1, 0, 0]]
    losses, metrics = method.loss(FixedActor(MOVED), batch)
    assert losses.tolist() == pytest.approx(expected)
    assert method.units(batch) == len(expected)
    assert metrics["clip_fraction"].float().mean() == pytest.approx(1 / 4)  # the 2; a small ratio is free


def test_grpo_divides_by_the_groups_deviation() -> None:
    batch = find("grpo")().advantages(experience())  # type: ignore[attr-defined]
    scaled = 1 / (math.sqrt(2) + 1e-4)
    assert batch.advantages.tolist() == [pytest.approx([scaled] * 3), pytest.approx([-scaled, 0, 0])]


def test_rloo_weighs_whole_answers() -> None:
    """4 against 2 and 2 against 4; the first answer's ratio is 2 * 1 * 1/2 = 1."""
    method: Any = find("rloo")()
    batch = method.advantages(experience())
    assert batch.advantages.tolist() == [2.0, -2.0]
    losses, _ = method.loss(FixedActor(MOVED), batch)
    assert losses.tolist() == pytest.approx([-2.0, 2.2])
    assert method.units(batch) == 2


@pytest.mark.parametrize(
    ("baseline", "first", "second"),
    [("none", [4, 4, 4], 2), ("mean", [0.5, 0.5, 0.5], -1.5), ("value", [3, 2, 1], 1)],
)
def test_reinforce_subtracts_its_baseline(baseline: str, first: list[float], second: float) -> None:
    """The mean over tokens is (3 * 4 + 2) / 4 = 3.5."""
    values = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]])
    rollout = experience(values=values) if baseline == "value" else experience()
    batch = find("reinforce")(baseline=baseline).advantages(rollout)  # type: ignore[attr-defined]
    assert batch.advantages.tolist() == [first, [second, 0, 0]]


def test_ppo_has_one_mean_over_all_tokens_of_policy_and_critic() -> None:
    """Advantages 1; the critic is 2 off, so that half the square is 2, counted half."""
    method: Any = find("ppo")(value_weight=0.5)
    mask = experience().mask
    batch = experience(values=0.0 * mask, returns=2.0 * mask, advantages=1.0 * mask)
    losses, _ = method.loss(FixedActor(MOVED, 0.0 * mask), batch)
    assert losses.tolist() == pytest.approx([-1.2 + 1, -1 + 1, -0.5 + 1, -1.1 + 1])
    assert method.units(batch) == 4


def test_ppo_with_kl_pays_for_the_way_from_the_old_policy() -> None:
    """kl_penalty 3 on KL(old || new) of each token, ratio - 1 - log ratio; ratios are not clipped."""
    method: Any = find("ppo_kl")(value_weight=0.0)
    mask = experience().mask
    batch = experience(values=0.0 * mask, returns=0.0 * mask, advantages=1.0 * mask)
    losses, _ = method.loss(FixedActor(MOVED, 0.0 * mask), batch)
    assert losses.tolist() == pytest.approx([3 * (r - 1 - math.log(r)) - r for r in (2.0, 1.0, 0.5, 1.1)])


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("ppo", "clip", 0.0),
        ("ppo", "lam", 1.5),
        ("ppo", "value_clip", -1.0),
        ("grpo", "beta", -0.1),
        ("grpo", "clip_high", 0.0),
        ("rloo", "kl_target", 0.0),
        ("reinforce", "gamma", 1.01),
        ("a2c", "entropy_bonus", -1.0),
        ("trpo", "max_kl", 0.0),
        ("ppo_kl", "old_kl_target", 0.0),
    ],
)
def test_online_parameters_out_of_bounds_are_refused(name: str, parameter: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{parameter}.*takes values from"):
        find(name)(**{parameter: value})
