"""The same batch through TRL 1.16's own trainers and through trimtab: loss to 1e-5, gradient to 1e-4."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import alone, causal_model, classifier, gradients, letter_tokenizer
from tests.peer.trl_trainers import batch_of, loss_and_gradient, trainer
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from trimtab.feedback.batches import Batch, Pairs, Table, Thumbs
from trimtab.feedback.records import Record
from trimtab.feedback.sequences import Sequences
from trimtab.feedback.tokenise import add_mismatched, tokenise
from trimtab.methods import find
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.reward_model import RewardModel

pytestmark = pytest.mark.peer

Rows = list[tuple[list[int], list[int]]]

PAIRS = [
    {"prompt": "the film ", "chosen": "is a joy", "rejected": "is dull"},
    {"prompt": "a cast of ", "chosen": "wits", "rejected": "bores that never end"},
    {"prompt": "it ", "chosen": "moves us all in the end", "rejected": "ends"},
]
THUMBS = [
    {"prompt": "the film ", "completion": "is a joy", "label": True},
    {"prompt": "a cast of ", "completion": "bores that never end", "label": False},
    {"prompt": "it ", "completion": "moves us all in the end", "label": True},
    {"prompt": "the plot ", "completion": "is thin", "label": False},
]


@pytest.fixture
def models() -> tuple[Any, Any]:
    """A model for TRL and its twin for trimtab (TRL and trimtab each change the model's forward)."""
    return causal_model(seed=1), causal_model(seed=1)


def pair_records() -> list[Record]:
    return [Record("pair", r["prompt"], (r["chosen"], r["rejected"])) for r in PAIRS]


def table(records: list[Record]) -> Table:
    return tokenise(records, letter_tokenizer(), max_length=64)


def with_reference(table: Table) -> Table:
    """Reference log-probs by another model, alone and unpadded."""
    reference = LanguagePolicy(causal_model(seed=2), letter_tokenizer())
    sequences = table.sequences(range(len(table.rows)))
    with torch.no_grad():
        rows = reference.logprobs(sequences)
    table.ref_logprobs = [row[mask] for row, mask in zip(rows, sequences.mask, strict=True)]
    return table


def ours(name: str, learner: Any, batch: Batch, **parameters: Any) -> tuple[float, torch.Tensor]:
    """The mean of the method's losses and its gradient."""
    method = find(name)(**parameters)
    learner.model.zero_grad()
    losses, _ = method.loss(learner, batch)
    losses.mean().backward()
    return float(losses.detach().mean()), gradients(list(learner.model.parameters()))


def policy(model: Any) -> LanguagePolicy:
    return LanguagePolicy(model, letter_tokenizer())


def assert_same(a: tuple[float, torch.Tensor], b: tuple[float, torch.Tensor]) -> None:
    assert a[0] == pytest.approx(b[0], abs=1e-5)
    assert float(b[1].abs().max()) > 1e-2, "a gradient of zero proves nothing"
    torch.testing.assert_close(a[1], b[1], rtol=0, atol=1e-4)


def test_sft(models: tuple[Any, Any], tmp_path: Path) -> None:
    rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in PAIRS]
    theirs = trainer(SFTTrainer, SFTConfig, models[0], rows, tmp_path)
    demonstrations = table([Record("demonstration", r["prompt"], (r["completion"],)) for r in rows])
    batch = batch_of(theirs)
    prompt, response = demonstrations.rows[0]
    assert batch["input_ids"][0][: len(prompt) + len(response)].tolist() == [*prompt, *response]
    learner = policy(models[1])
    assert_same(ours("sft", learner, demonstrations.batch(range(3))), loss_and_gradient(theirs, batch))


def test_dpo(models: tuple[Any, Any], tmp_path: Path) -> None:
    theirs = dpo_trainer(models[0], tmp_path, "sigmoid")
    batch = with_reference(table(pair_records())).batch(range(3))
    assert_same(ours("dpo", policy(models[1]), batch, beta=0.3), loss_and_gradient(theirs, batch_of(theirs)))


def test_dpo_with_label_smoothing(models: tuple[Any, Any], tmp_path: Path) -> None:
    """TRL's `sigmoid` ignores label_smoothing; its `aot` of a single pair is DPO that has it."""
    theirs = dpo_trainer(models[0], tmp_path, "aot", label_smoothing=0.2)
    single = [theirs.data_collator([theirs.train_dataset[i]]) for i in range(3)]
    results = [loss_and_gradient(theirs, batch) for batch in single]
    mean = sum(loss for loss, _ in results) / 3, torch.stack([g for _, g in results]).mean(0)
    batch = with_reference(table(pair_records())).batch(range(3))
    smoothed = ours("dpo", policy(models[1]), batch, beta=0.3, label_smoothing=0.2)
    assert_same(smoothed, mean)

    sigmoid = dpo_trainer(causal_model(seed=1), tmp_path, "sigmoid", label_smoothing=0.2)
    ignored, _ = loss_and_gradient(sigmoid, batch_of(sigmoid))
    assert ignored == pytest.approx(ours("dpo", policy(models[1]), batch, beta=0.3)[0], abs=1e-5)
    assert abs(ignored - smoothed[0]) > 1e-2


def test_ipo_averages_over_tokens_in_trl(models: tuple[Any, Any], tmp_path: Path) -> None:
    theirs = dpo_trainer(models[0], tmp_path, "ipo")
    batch = with_reference(table(pair_records())).batch(range(3))
    result = loss_and_gradient(theirs, batch_of(theirs))
    assert_same(ours("ipo", policy(models[1]), batch, beta=0.3, per_token=True), result)
    summed, _ = ours("ipo", policy(models[1]), batch, beta=0.3)  # the paper's sum, our default
    assert abs(summed - result[0]) > 1.0


@pytest.mark.parametrize(("seed", "clamped"), [(1, False), (11, True)])
def test_kto(tmp_path: Path, seed: int, clamped: bool) -> None:
    """With TRL's own mismatched rows; a reference point below zero counts as zero."""
    theirs = trainer(
        KTOTrainer,
        KTOConfig,
        causal_model(seed=seed),
        THUMBS,
        tmp_path,
        ref_model=causal_model(seed=2),
        beta=0.3,
        desirable_weight=1.5,
        undesirable_weight=0.7,
    )
    theirs_batch = batch_of(theirs)
    learner = policy(causal_model(seed=seed))
    batch, kl = kto_batch(learner, theirs_batch)
    assert (kl < 0) == clamped, kl
    assert float(batch.kl) == pytest.approx(max(0.0, kl))
    weights = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7}
    assert_same(ours("kto", learner, batch, **weights), loss_and_gradient(theirs, theirs_batch))


def test_kto_mismatches_by_rotation_in_trl(tmp_path: Path) -> None:
    """Two answers to one prompt that stand together: TRL lets one meet its own prompt, trimtab does not."""
    rows = [THUMBS[0], {**THUMBS[0], "completion": "is long", "label": False}, THUMBS[1], THUMBS[3]]
    theirs = trainer(KTOTrainer, KTOConfig, causal_model(), rows, tmp_path, ref_model=causal_model(seed=2))
    dataset = theirs.train_dataset
    asked = {tuple(row["completion_ids"]): row["prompt_ids"] for row in dataset}
    met_own = [asked[tuple(row["KL_completion_ids"])] == row["prompt_ids"] for row in dataset]
    assert met_own == [False, True, False, False]

    ours = table([Record("thumbs", r["prompt"], (r["completion"],), desirable=r["label"]) for r in rows])
    add_mismatched(ours, seed=0)
    mismatched = [ours.rows[e.mismatched] for e in ours.examples]
    assert [asked[tuple(response)] == prompt for prompt, response in mismatched] == [False] * 4


@pytest.mark.parametrize(("margin", "center"), [(False, 0.0), (True, 0.0), (True, 0.05)])
def test_reward_model(tmp_path: Path, margin: bool, center: float) -> None:
    margins = [0.5, 0.0, 2.0]
    rows = [{**r, **({"margin": m} if margin else {})} for r, m in zip(PAIRS, margins, strict=True)]
    theirs = trainer(
        RewardTrainer, RewardConfig, classifier(seed=1), rows, tmp_path, center_rewards_coefficient=center
    )
    records = [replace(r, margin=m) for r, m in zip(pair_records(), margins, strict=True)]
    learner = RewardModel(classifier(seed=1), letter_tokenizer())
    assert_same(
        ours("reward_model", learner, table(records).batch(range(3)), margin=margin, center=center),
        loss_and_gradient(theirs, batch_of(theirs)),
    )


def test_orpo_preference_term(tmp_path: Path) -> None:
    """The odds ratio term is the same: what beta adds to the loss, and to its gradient."""
    (loss, gradient, rows), (loss_0, gradient_0, _) = (orpo(tmp_path, beta) for beta in (0.5, 0.0))
    learner, batch = policy(causal_model(seed=1)), pairs(rows)
    a, b = (ours("orpo", learner, batch, beta=beta) for beta in (0.5, 0.0))
    assert_same((a[0] - b[0], a[1] - b[1]), (loss - loss_0, gradient - gradient_0))


def test_orpo_likelihood_term_differs(tmp_path: Path) -> None:
    """TRL's NLL covers the prompt too and averages over the batch's tokens; the paper's eq. 6 and ours
    cover the response and average over the tokens of each.
    """
    theirs, _, rows = orpo(tmp_path, 0.0)
    model, chosen = causal_model(seed=1), rows[:3]
    with torch.no_grad():
        whole = torch.cat([alone(model, prompt[:1], [*prompt[1:], *response]) for prompt, response in chosen])
        means = torch.stack([alone(model, prompt, response).mean() for prompt, response in chosen])
    assert theirs == pytest.approx(float(-whole.mean()), abs=1e-5)
    own, _ = ours("orpo", policy(model), pairs(rows), beta=0.0)
    assert own == pytest.approx(float(-means.mean()), abs=1e-5)
    assert abs(own - theirs) > 0.005


def dpo_trainer(model: Any, folder: Path, loss: str, **options: Any) -> Any:
    reference = causal_model(seed=2)
    return trainer(
        DPOTrainer,
        DPOConfig,
        model,
        PAIRS,
        folder,
        ref_model=reference,
        beta=0.3,
        loss_type=[loss],
        **options,
    )


def orpo(folder: Path, beta: float) -> tuple[float, torch.Tensor, Rows]:
    """TRL's loss, gradient, and the rows it was taken of (this trainer puts BOS before every prompt)."""
    theirs = trainer(ORPOTrainer, ORPOConfig, causal_model(seed=1), PAIRS, folder, beta=beta)
    batch = batch_of(theirs)
    rows = [
        (ids[seen.bool() & (labels == -100)].tolist(), labels[labels != -100].tolist())
        for side in ("chosen", "rejected")
        for ids, seen, labels in zip(
            *(batch[f"{side}_{name}"] for name in ("input_ids", "attention_mask", "labels")), strict=True
        )
    ]
    return *loss_and_gradient(theirs, batch), rows


def pairs(rows: Rows) -> Pairs:
    return Pairs(sequences=Sequences.pack(rows), margin=torch.zeros(len(rows) // 2))


def kto_batch(learner: LanguagePolicy, theirs: dict[str, Any]) -> tuple[Thumbs, float]:
    """TRL's batch, mismatched rows included, as ours with its reference point; and that point unclamped."""
    reference = policy(causal_model(seed=2))
    matched, mismatched = (unpadded(theirs, prefix) for prefix in ("", "KL_"))
    with torch.no_grad():
        batch = Thumbs(
            sequences=matched,
            ref_logprobs=reference.logprobs(matched),
            desirable=theirs["label"],
            mismatched=mismatched,
            mismatched_ref_logprobs=reference.logprobs(mismatched),
        )
        [prepared] = find("kto")().prepare(learner, [batch])
        kl = (learner.logprobs(mismatched) - reference.logprobs(mismatched)).sum(-1).mean()
    return prepared, float(kl)


def unpadded(batch: dict[str, torch.Tensor], prefix: str) -> Sequences:
    """The (prompt, response) rows of TRL's padded tensors."""
    ids, seen, completion = (
        batch[prefix + name].bool() if "mask" in name else batch[prefix + name]
        for name in ("input_ids", "attention_mask", "completion_mask")
    )
    rows = zip(ids, seen, completion, strict=True)
    return Sequences.pack([(row[s & ~c].tolist(), row[c].tolist()) for row, s, c in rows])
