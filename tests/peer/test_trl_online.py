"""The same answers through TRL 1.16's GRPO and RLOO and through trimtab: loss to 1e-5, gradient to 1e-4.

TRL makes the whole way itself: from the answers, which alone are given, over old and reference log-probs,
rewards and advantages to the second update on them, before which the weights are moved: ratios are clipped.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import causal_model, gradients, letter_tokenizer
from tests.peer.trl_trainers import Step, online_trainer, second_update
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from trimtab.errors import UserError
from trimtab.feedback.sequences import Sequences
from trimtab.methods import find
from trimtab.objectives.advantages import group_relative
from trimtab.objectives.divergences import kl_k3
from trimtab.objectives.logprobs import masked_mean
from trimtab.policies.actor_critic import ActorCritic
from trimtab.policies.language import LanguagePolicy
from trimtab.rollouts.collect import CollectConfig, with_rewards
from trimtab.rollouts.rewards import checked
from trimtab.rollouts.rollout import Rollout
from trimtab.train import backward

pytestmark = pytest.mark.peer

LONGEST = 12
SAMPLES = 4
END = 1
ANSWERS = {
    "the film ": {"is a joy": 1.0, "is dull": -0.5, "moves us all in the end": 0.3, "ends": 0.2},
    "it ": {"works": 0.7, "drags on and on": -1.0, "is thin": 0.0, "moves": 0.4},
    "a cast of ": {"wits": 1.5, "bores": -0.2, "fine people": 0.9, "many names and no one": 0.1},
}
TWO_PARTS = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}
TRL = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
FAR = {"grpo": 0.02, "rloo": 0.004}  # a whole answer's ratio goes further than a token's


def given() -> list[dict[str, Any]]:
    """The answers as rows: those too long are cut off, the others end with EOS."""
    encode = letter_tokenizer().encode
    return [
        {"prompt": prompt, "answer": [*encode(answer), END][:LONGEST], "score": score}
        for prompt, answers in ANSWERS.items()
        for answer, score in answers.items()
    ]


def moved(model: Any, seed: int, size: float) -> Any:
    """The model with noise on its weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model


def reference_model() -> Any:
    return moved(causal_model(seed=1), 2, 0.02)


def trl(
    name: str,
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    far: float | None = None,
    **options: Any,
) -> Step:
    """TRL's second update on the answers, or on other rows."""
    rows, far = rows or given(), FAR[name] if far is None else far
    trainer = online_trainer(
        *TRL[name],
        model=causal_model(seed=1),
        reference=reference_model(),
        rows=rows,
        folder=folder,
        **{"num_generations": SAMPLES, **options},
    )
    return second_update(trainer, rows, lambda model: moved(model, 3, far))


def collected(collect: CollectConfig) -> Rollout:
    """The answers, with the log-probs of the policy that gave them and of the reference."""
    rows = given()
    sequences = Sequences.pack([(letter_tokenizer().encode(row["prompt"]), row["answer"]) for row in rows])
    old, reference = (
        LanguagePolicy(model, letter_tokenizer()).logprobs(sequences, collect.temperature).detach()
        for model in (causal_model(seed=1), reference_model())
    )
    ended = torch.arange(old.shape[1]) == sequences.response_lengths[:, None] - 1
    finished = torch.tensor([row["answer"][-1] == END for row in rows])
    return Rollout(
        inputs=sequences,
        mask=sequences.mask,
        old_logprobs=old,
        ref_logprobs=reference,
        rewards=torch.zeros_like(old),
        terminated=ended & finished[:, None],
        ended=ended,
        score=torch.tensor([row["score"] for row in rows]),
        fresh=torch.ones(len(rows), dtype=torch.bool),
        group_size=SAMPLES,
        longest=collect.max_new_tokens,
    )


def learner(name: str, temperature: float = 1.0) -> ActorCritic:
    model = moved(causal_model(seed=1), 3, FAR[name])
    return ActorCritic(LanguagePolicy(model, letter_tokenizer()), temperature=temperature)


def ours(
    name: str, parts: list[torch.Tensor] | None = None, collect: dict[str, Any] | None = None, **options: Any
) -> Step:
    """The step on all answers at once, or on the rows of these numbers in these micro-batches."""
    method: Any = find(name)(**{"beta": 0.0, **options})
    config = CollectConfig(**{"max_new_tokens": LONGEST, **(collect or {})})
    coefficients = method.coefficients()
    rollout = with_rewards(collected(config), config, coefficients["beta"] * method.reward_beta)
    rollout = method.advantages(replace(rollout, coefficients=coefficients))
    policy = learner(name, config.temperature)
    parts = parts or [torch.arange(rollout.size)]
    metrics = {
        n: float(v) for n, v in backward(method, policy, [rollout.select(part) for part in parts]).items()
    }
    advantages = rollout.advantages.view(rollout.size, -1)[:, 0]
    return Step(metrics["loss"], gradients(policy.parameters()), advantages, metrics["clip_fraction"], parts)


def assert_same(a: Step, b: Step) -> None:
    assert float(b.gradient.abs().max()) > 1e-2, "a gradient of zero proves nothing"
    torch.testing.assert_close(a.advantages, b.advantages, rtol=0, atol=1e-5)
    assert a.loss == pytest.approx(b.loss, abs=1e-5)
    torch.testing.assert_close(a.gradient, b.gradient, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({"aggregation": "grpo"}, {"loss_type": "grpo"}),
        ({"aggregation": "dr_grpo", "scale": False}, {"loss_type": "dr_grpo", "scale_rewards": False}),
        ({"aggregation": "dapo", "clip_high": 0.28}, {"loss_type": "dapo", "epsilon_high": 0.28}),
        ({"aggregation": "dapo", "clip": 0.1}, {"loss_type": "bnpo", "epsilon": 0.1}),
        ({"scale": False, "clip": 0.1}, {"loss_type": "grpo", "scale_rewards": False, "epsilon": 0.1}),
        ({"beta": 0.3}, {"loss_type": "grpo", "beta": 0.3}),
        ({"beta": 0.3, "aggregation": "dr_grpo"}, {"loss_type": "dr_grpo", "beta": 0.3}),
        ({"beta": 0.3, "aggregation": "dapo"}, {"loss_type": "dapo", "beta": 0.3}),
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()),
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_grpo(options: dict[str, Any], theirs: dict[str, Any], temperature: float, tmp_path: Path) -> None:
    peer = trl("grpo", tmp_path, temperature=temperature, **theirs)
    own = ours("grpo", collect={"temperature": temperature}, **options)
    assert 0.1 < peer.clipped < 0.9
    assert own.clipped == pytest.approx(peer.clipped)
    assert_same(own, peer)


@pytest.mark.parametrize(
    ("options", "collect", "theirs"),
    [
        ({}, {}, {}),
        ({"clip": 0.1}, {}, {"epsilon": 0.1}),
        ({"beta": 0.3}, {}, {"beta": 0.3}),
        ({"beta": 0.3}, {"temperature": 0.7}, {"beta": 0.3, "temperature": 0.7}),
        ({"beta": 0.3}, {"clip_scores": 0.6}, {"beta": 0.3, "reward_clip_range": (-0.6, 0.6)}),
    ],
)
def test_rloo(
    options: dict[str, Any], collect: dict[str, Any], theirs: dict[str, Any], tmp_path: Path
) -> None:
    peer = trl("rloo", tmp_path, **theirs)
    own = ours("rloo", collect=collect, **options)
    assert 0.1 < peer.clipped < 0.9
    assert own.clipped == pytest.approx(peer.clipped)
    assert_same(own, peer)


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("grpo", {"aggregation": "grpo", "beta": 0.3}, {"loss_type": "grpo", "beta": 0.3}),
        ("grpo", {"aggregation": "dr_grpo"}, {"loss_type": "dr_grpo"}),
        ("grpo", {"aggregation": "dapo"}, {"loss_type": "dapo"}),
        ("rloo", {}, {}),
    ],
)
def test_two_micro_batches(
    name: str, options: dict[str, Any], theirs: dict[str, Any], tmp_path: Path
) -> None:
    """The step is the same as on all answers at once, in both."""
    halves = list(torch.arange(12).chunk(2))
    assert_same(ours(name, halves, **options), trl(name, tmp_path, **theirs, **TWO_PARTS))


def test_dr_grpo_divides_by_the_longest_possible_answer(tmp_path: Path) -> None:
    peer = trl("grpo", tmp_path, loss_type="dr_grpo", max_completion_length=20)
    assert_same(ours("grpo", aggregation="dr_grpo", collect={"max_new_tokens": 20}), peer)


def test_bnpo_averages_micro_batches(tmp_path: Path) -> None:
    """TRL's `bnpo` is the mean over tokens of one micro-batch, and the mean of these means of several."""
    peer = trl("grpo", tmp_path, loss_type="bnpo", **TWO_PARTS)
    alone = [ours("grpo", [part], aggregation="dapo") for part in peer.parts]
    assert peer.loss == pytest.approx(sum(part.loss for part in alone) / 2, abs=1e-5)
    own = ours("grpo", peer.parts, aggregation="dapo")
    assert_same(own, trl("grpo", tmp_path, loss_type="bnpo"))
    assert abs(own.loss - peer.loss) > 1e-3


def test_dapo_counts_the_tokens_of_the_whole_generation(tmp_path: Path) -> None:
    """With several steps on the answers, TRL divides each by a step's share of all tokens, not by its own."""
    several = {"per_device_train_batch_size": 6, "steps_per_generation": 2}
    peer = trl("grpo", tmp_path, loss_type="dapo", **several)
    tokens = torch.tensor([len(row["answer"]) for row in given()])
    count, share = int(tokens[peer.parts[0]].sum()), int(tokens.sum()) / 2
    own = ours("grpo", peer.parts[:1], aggregation="dapo")
    assert own.loss * count == pytest.approx(peer.loss * share, abs=1e-4)
    torch.testing.assert_close(own.gradient * count, peer.gradient * share, rtol=0, atol=1e-3)
    assert own.loss != pytest.approx(peer.loss, rel=0.01)


def test_kl_without_the_ratio(tmp_path: Path) -> None:
    """`use_bias_correction_kl=False` is the GRPO paper's k3: on fresh answers the same value as ours, but the
    gradient of another divergence.
    """
    options = {"loss_type": "grpo", "beta": 1.0}
    paper, ratio = (
        trl("grpo", tmp_path, far=0.0, use_bias_correction_kl=with_ratio, **options)
        for with_ratio in (False, True)
    )
    assert paper.loss == pytest.approx(ratio.loss, abs=1e-5)
    assert float((paper.gradient - ratio.gradient).abs().max()) > 1e-2

    policy, rollout = learner("grpo"), collected(CollectConfig())
    k3 = kl_k3(policy.evaluate(rollout.inputs).logprobs - rollout.ref_logprobs)
    masked_mean(k3, rollout.mask).mean().backward()
    without = ours("grpo")
    moved_on = trl("grpo", tmp_path, use_bias_correction_kl=False, **options)
    torch.testing.assert_close(
        moved_on.gradient - without.gradient, gradients(policy.parameters()), rtol=0, atol=1e-4
    )
    assert ours("grpo", beta=1.0).loss != pytest.approx(moved_on.loss, abs=1e-3)


def test_kl_in_the_score_of_grpo(tmp_path: Path) -> None:
    """TRL's GRPO pays for the KL in the loss only; given scores with its price, it does as `kl: reward`."""
    rollout = collected(CollectConfig())
    kl = ((rollout.old_logprobs - rollout.ref_logprobs) * rollout.mask).sum(-1).tolist()
    rows = [{**row, "score": row["score"] - 0.3 * kl} for row, kl in zip(given(), kl, strict=True)]
    peer = trl("grpo", tmp_path, rows, loss_type="grpo")
    assert_same(ours("grpo", beta=0.3, kl="reward"), peer)
    assert float((peer.advantages - ours("grpo").advantages).abs().max()) > 0.1


def test_scaling_by_the_batch(tmp_path: Path) -> None:
    """TRL's `scale_rewards="batch"` is whiten_scores without scale, but for the 1e-4 beside the deviation."""
    peer = trl("grpo", tmp_path, loss_type="grpo", scale_rewards="batch")
    own = ours("grpo", collect={"whiten_scores": True}, scale=False)
    deviation = float(torch.tensor([row["score"] for row in given()]).std())
    exact = own.advantages * deviation / (deviation + 1e-4)
    torch.testing.assert_close(exact, peer.advantages, rtol=0, atol=1e-6)
    assert float((own.advantages - peer.advantages).abs().max()) > 1e-4


def test_whitening_of_rloo(tmp_path: Path) -> None:
    """TRL whitens advantages (`normalize_advantages`), with the KL's price in them; trimtab the scores."""
    rollout = collected(CollectConfig())
    price = 0.3 * ((rollout.old_logprobs - rollout.ref_logprobs) * rollout.mask).sum(-1)
    paid, scaled = rollout.score - price, rollout.score / rollout.score.std() - price
    over_the_others, over_the_others_scaled = (
        scores - (scores.view(3, 4).sum(1).repeat_interleave(4) - scores) / 3 for scores in (paid, scaled)
    )
    peer = trl("rloo", tmp_path, beta=0.3, normalize_advantages=True)
    expected = over_the_others / (over_the_others.std() + 1e-4)
    torch.testing.assert_close(peer.advantages, expected, rtol=0, atol=1e-5)
    own = ours("rloo", beta=0.3, collect={"whiten_scores": True})
    torch.testing.assert_close(own.advantages, over_the_others_scaled, rtol=0, atol=1e-5)
    assert float((own.advantages - peer.advantages).abs().max()) > 0.1


def test_equal_scores(tmp_path: Path) -> None:
    """A group that agrees teaches nothing. TRL divides what rounding leaves of it by a deviation as small."""
    rows = [{**row, "score": 1000.1} for row in given()]
    peer = trl("grpo", tmp_path, rows, num_generations=6)
    assert float(peer.advantages.abs().min()) > 0.1
    assert group_relative(torch.full((2, 6), 1000.1)).tolist() == [[0.0] * 6] * 2


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_cut_off_answers(name: str, tmp_path: Path) -> None:
    """TRL can take cut-off answers out of the loss (`mask_truncated_completions`), though not out of the mean
    over answers, nor out of what the others are compared with; in trimtab they count.
    """
    theirs = {"loss_type": "grpo"} if name == "grpo" else {}
    peer = trl(name, tmp_path, mask_truncated_completions=True, **theirs)
    finished = torch.tensor([i for i, row in enumerate(given()) if row["answer"][-1] == END])
    assert len(finished) == 9
    own, of_finished = ours(name), ours(name, [finished])
    torch.testing.assert_close(own.advantages, peer.advantages, rtol=0, atol=1e-5)
    torch.testing.assert_close(of_finished.gradient * 9 / 12, peer.gradient, rtol=0, atol=1e-4)
    assert float((own.gradient - peer.gradient).abs().max()) > 1e-2


def test_answers_without_a_score(tmp_path: Path) -> None:
    """A reward that gives None: TRL goes on without that answer, trimtab stops."""
    rows = given()
    rows[0]["score"] = None
    peer = trl("rloo", tmp_path, rows)
    assert peer.advantages[:4].tolist() == pytest.approx([0.0, -0.75, 0.45, 0.3])  # among -0.5, 0.3, 0.2
    reward = checked(lambda prompts, responses, columns: [None], "given")
    with pytest.raises(UserError, match="one number for each response"):
        reward(["the film "], ["is a joy"])
