"""The estimate counts what autograd keeps, agrees with measured memory, and each finding can say no."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny
from tests.models import causal_model, classifier, letter_tokenizer, pack
from torch import Tensor

from trimtab.doctor import fit
from trimtab.doctor.demand import demand
from trimtab.doctor.estimate import Shape, estimate, shape_of
from trimtab.doctor.findings import Finding
from trimtab.doctor.fit import Case, fit_findings
from trimtab.doctor.measure import Measured, Taken, Trial, filled, largest_part, measured
from trimtab.errors import UserError
from trimtab.feedback.records import Record
from trimtab.methods import find
from trimtab.methods.sft import SFT
from trimtab.online import OnlineConfig
from trimtab.online_jobs import CriticConfig
from trimtab.policies.load import ModelConfig, load_language_policy
from trimtab.rollouts.collect import CollectConfig
from trimtab.train import RunConfig, make_table

SHAPE = Shape(
    parameters=1000, trained=1000, multiplied=800, hidden=8, inner=16, layers=2, queries=8, keys=4,
    vocabulary=10, gated=True, adapted=False, fused=True, fused_lora=False, bf16=False,
)  # fmt: skip
PAIRS = [Record("pair", "aaaa", ("bb", "cccc")), Record("pair", "dd", ("eeeeeeee", "f"))]


def config(folder: str | None = None, **settings: Any) -> ModelConfig:
    return ModelConfig(folder or tiny.model_folder(), device="cpu", **{"precision": "fp32", **settings})


def test_a_layer_keeps_what_the_formula_says() -> None:
    assert SHAPE.kept_by_layer == 2 * 4 * 8 + 4 * (2 * 8 + 2 * 4) + 4 * (2 * 8 + 16) + 4 * 2 * 16 == 416
    assert SHAPE.gradients_of_layer(9) == SHAPE.gradients_of_layer(999) == 416
    half = replace(SHAPE, bf16=True)
    assert half.gradients_of_layer(399) == 5 * 2 * 8 + 20 * 8 + 12 * 8 + 4 * (8 + 2 * 4) == 400
    assert half.gradients_of_layer(400) == half.kept_by_layer == 240
    assert replace(half, queries=32).gradients_of_layer(400) == 8 * 2 * 32 + 4 * (32 + 2 * 4) == 672
    assert replace(half, cpu=False).gradients_of_layer(9) == 240
    assert replace(half, cpu=False, adapted=True).gradients_of_layer(9) == 272 + 8 * 16
    assert half.kept_by_layer == 2 * 4 * 8 + 2 * (2 * 8 + 2 * 4) + 2 * (2 * 8 + 16) + 2 * 2 * 16 == 240
    adapted = replace(half, adapted=True)
    assert adapted.kept_by_layer == 2 * 2 * 8 + 2 * (2 * 8 + 2 * 4) + 2 * (5 * 8 + 8 + 16) + 2 * 2 * 16 == 272
    fused = replace(adapted, fused_lora=True)
    assert fused.kept_by_layer == 2 * 2 * 8 + 2 * (2 * 8 + 2 * 4) + 2 * (2 * 8 + 16) + 2 * 2 * 16 == 208
    assert replace(fused, cpu=False).gradients_of_layer(9) == 208


def test_the_parts_of_a_step() -> None:
    parts = estimate(SHAPE, 10)
    assert (parts.weights, parts.gradients, parts.moments, parts.copies) == (4000, 4000, 8000, 0)
    assert parts.activations == 10 * 416 * 2 + 20 * 4 * 8
    assert parts.backward == 10 * 416
    assert parts.total == 4000 + 4000 + 8000 + 8960 + 4160
    wide = replace(SHAPE, vocabulary=1000)
    assert estimate(wide, 10).backward == 10 * 1000 * 8 + (1000 + 10) * 8 * 4
    assert estimate(wide, 10, predicted=4).backward == 4 * 1000 * 8 + (1000 + 4) * 8 * 4
    assert estimate(replace(wide, adapted=True), 10).backward == 10 * 1000 * 8
    assert estimate(SHAPE, 10, reference=True).reference == 4000
    assert estimate(SHAPE, 10, critic="model").critic == 16000
    assert estimate(replace(SHAPE, bf16=True), 10).copies == 1600
    adapted = estimate(replace(SHAPE, bf16=True, adapted=True, trained=100, multiplied=100), 10)
    assert (adapted.weights, adapted.gradients, adapted.moments) == (900 * 2 + 100 * 4, 400, 800)
    checkpointing = estimate(replace(SHAPE, checkpointing=True), 10)
    assert checkpointing.activations == 10 * 416 + 10 * 4 * 8 * 2 + 20 * 4 * 8


def test_sizes_come_from_the_configuration_alone() -> None:
    policy = load_language_policy(config(lora_rank=3))
    shape = shape_of(config(lora_rank=3))
    assert shape.parameters == sum(p.numel() for p in policy.model.parameters())
    assert shape.trained == sum(p.numel() for p in policy.parameters())
    assert (shape.hidden, shape.inner, shape.layers, shape.queries, shape.keys) == (32, 64, 2, 32, 16)
    assert shape.fused and shape.gated and shape.adapted and not shape.bf16
    assert not shape_of(config(without="fused")).fused
    whole = shape_of(config())
    assert whole.trained == whole.parameters == sum(p.numel() for p in causal_model().parameters())
    head = shape_of(config(), reward_model=True)
    assert head.parameters == sum(p.numel() for p in classifier().parameters())


def test_norms_of_heads_are_counted() -> None:
    assert replace(SHAPE, head_norms=True).kept_by_layer == 416 + 4 * (8 + 4)


def kept_by_autograd(folder: str, settings: dict[str, Any], rows: Any) -> int:
    """Bytes that the graph of the trunk's forward pass holds, weights and copies of them aside."""
    policy = load_language_policy(config(folder, **settings))
    storages: dict[int, int] = {}
    matrices = {tuple(p.shape) for p in policy.model.parameters()} | {
        tuple(p.T.shape) for p in policy.model.parameters() if p.dim() == 2
    }

    def keep(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) not in matrices:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)  # so that no address is used twice
        return tensor

    alive: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), policy.autocasting():
        policy.trunk.hidden(pack(rows))
    return sum(storages.values())


WIDE = {"num_hidden_layers": 8, "hidden_size": 48, "intermediate_size": 112}


@pytest.mark.parametrize(("model", "settings"), [
    (WIDE, {}),
    (WIDE, {"precision": "bf16"}),
    (WIDE, {"lora_rank": 2}),
    (WIDE, {"lora_rank": 2, "precision": "bf16"}),
    (WIDE, {"lora_rank": 2, "precision": "bf16", "without": "fused-lora"}),
    (WIDE, {"without": "fused"}),
    (WIDE, {"without": "fused", "precision": "bf16"}),
    ({"architecture": "Qwen3", "num_hidden_layers": 8}, {}),
    ({"architecture": "Mistral", "num_hidden_layers": 8}, {"precision": "bf16"}),
    ({"architecture": "GPT2", "n_layer": 8}, {}),
], ids=str)  # fmt: skip
def test_the_formula_is_what_autograd_keeps(model: dict[str, Any], settings: dict[str, Any]) -> None:
    folder = tiny.model_folder(**model)
    rows = [(list(range(4, 36)), list(range(4, 36))) for _ in range(8)]
    rows = [([i + 4, *prompt], response) for i, (prompt, response) in enumerate(rows)]
    tokens = sum(len(prompt) + len(response) for prompt, response in rows)
    shape = shape_of(config(folder, **settings))
    found = kept_by_autograd(folder, settings, rows) / tokens / shape.layers
    assert found == pytest.approx(shape.kept_by_layer, rel=0.1)


def test_tokens_that_a_run_asks_for() -> None:
    """One token a letter, and one that ends each response."""
    run = RunConfig(max_length=64, batch_size=2, batch_tokens=20, steps=10)
    asked = demand(find("dpo")(), PAIRS, letter_tokenizer(), run, CollectConfig())
    first, second = (4 + 3) + (4 + 5), (2 + 9) + (2 + 2)
    assert asked.row == first == 16
    assert asked.part == 16  # 20 hold one of them
    assert asked.step == first + second == 31
    assert asked.whole == 310
    assert asked.once == 31
    assert asked.sequences == 2
    assert asked.predicted == (3 + 5 + 9 + 2) / 31
    assert asked.read == (31 - 4 - 2) / 31  # both prompts are read once for both responses
    assert (
        demand(find("dpo")(), PAIRS, letter_tokenizer(), replace(run, batch_tokens=40), CollectConfig()).part
        == 31
    )
    assert (
        demand(find("dpo")(), PAIRS, letter_tokenizer(), replace(run, batch_size=1), CollectConfig()).part
        == 16
    )


def test_tokens_that_an_online_run_asks_for() -> None:
    collect = CollectConfig(prompts=3, samples=2, max_new_tokens=10)
    run = OnlineConfig(max_length=64, refreshes=5, batch_tokens=30)
    prompts = [Record("prompt", "aaaa"), Record("prompt", "bb")]
    asked = demand(find("grpo")(), prompts, letter_tokenizer(), run, collect)
    assert asked.row == 14
    assert asked.part == 28
    assert asked.step == 3 * 2 * 13  # 13 on average
    assert asked.whole == 5 * asked.step
    assert asked.answers == 3 * 2 * 14


def test_examples_fill_the_parts_of_a_step() -> None:
    table = make_table(find("dpo")(), PAIRS, letter_tokenizer(), RunConfig(max_length=64))
    part, tokens = filled(table, 40)
    assert tokens == [16, 15, 16, 15, 16]
    assert len(part.examples) == 5
    assert largest_part(tokens, 40) == 32  # 15 and 15, 16 and 16, 16
    assert filled(table, 5)[1] == [16, 16]
    assert largest_part([16, 16], 5) == 16


SIZES = {
    "wide MLP": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "head_dim": 64},
    "large heads": {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 128},
    "many layers": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 16},
}


def long_pairs(letters: int = 200) -> list[Record]:
    """Of many letters, and without equal prompts."""
    texts = ["abcdefghij" * (letters // 10), "klmnopqrst" * (letters // 10)]
    return [Record("pair", f"{chr(97 + i)}{texts[0]}", (texts[1], texts[1][::-1])) for i in range(8)]


def trial(folder: str, settings: dict[str, Any], sizes: tuple[int, ...], **rest: Any) -> Trial:
    given: dict[str, Any] = {
        "method": find("dpo")(),
        "model": config(folder, **settings),
        "run": RunConfig(max_length=512),
        "records": tuple(long_pairs()),
        "collect": CollectConfig(),
        "critic": CriticConfig(),
        "threads": 1,
    }
    return Trial(sizes=sizes, **{**given, **rest})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [("wide MLP", {}), ("large heads", {"precision": "bf16"}), ("many layers", {"lora_rank": 8})],
)
def test_estimate_and_measurement_agree(name: str, settings: dict[str, Any]) -> None:
    folder = tiny.model_folder(**SIZES[name], max_position_embeddings=1024)
    found = measured(trial(folder, settings, (820, 1640)), 300)
    case = case_of(folder, settings, RunConfig(max_length=512))
    first, last = found.taken
    assert (first.tokens, last.tokens) == (804, 1608)
    assert found.held > 0.95 * last.memory
    assert fit.agreement(case, found).level == "ok"
    a_token = (last.memory - first.memory) / 804
    assert 0.8 < case.slope / a_token < 1.25


def case_of(folder: str, settings: dict[str, Any], run: Any, method: Any = None) -> Case:
    made = method or find("dpo")()
    records = long_pairs()
    chosen = config(folder, **settings)
    asked = demand(made, records, letter_tokenizer(), run, CollectConfig())
    return Case(made, chosen, run, CollectConfig(), CriticConfig(), shape_of(chosen), asked)


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    assert {finding.group for finding in findings} == {"fit"}
    return {finding.check: finding for finding in findings}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kto", "reward_model", "ppo"])
def test_a_small_model_fits(name: str) -> None:
    method: Any = find(name)()
    kinds = {"thumbs": [Record("thumbs", r.prompt, r.responses[:1], desirable=True) for r in long_pairs()]}
    records = kinds.get(method.data, long_pairs())
    run = OnlineConfig(max_length=512) if method.online else RunConfig(max_length=512)
    collect = CollectConfig(prompts=4, max_new_tokens=20)
    findings = by_check(fit_findings(method, config(), records, run, collect=collect))
    names = ["memory, estimated", "memory, measured", "estimate and measurement", "largest batch", "time"]
    assert list(findings) == names
    assert {finding.level for finding in findings.values()} == {"ok"}, findings
    assert 1e8 < findings["memory, measured"].values["needed"] < 4e9
    assert findings["largest batch"].values["batch_tokens"] > 8192


def test_without_a_method_nothing_is_measured() -> None:
    [finding] = fit_findings(None, config(), PAIRS, RunConfig())
    assert finding.level == "skipped"


def test_a_folder_without_sizes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    [finding] = fit_findings(find("dpo")(), config(str(tmp_path)), PAIRS, RunConfig())
    assert finding.level == "error"
    assert str(tmp_path) in finding.said


# Each finding says no where it should: the numbers are made up.

GB = 10**9


def made_up(run: Any = None, **changes: Any) -> tuple[Case, Measured]:
    """A run of micro-batches of 3216 tokens.

    Python has 1 GB of 10. Tensors take 2 GB at 1000 tokens and 3 GB at 2000, of which the process makes 6 GB:
    1 MB a token, held twice.
    """
    case = case_of(tiny.model_folder(), {}, run or RunConfig(max_length=512, batch_tokens=3300, steps=100))
    assert case.demand.part == 3216
    taken = (Taken(1000, 2000, 3 * GB, 1.0), Taken(2000, 4000, 4 * GB, 2.5))
    given = {"base": GB, "available": 10 * GB, "taken": taken, "held": 7 * GB, "seconds": 2.0}
    return case, Measured(**{**given, **changes})


def test_memory_needed_is_carried_on_to_the_size_that_was_asked_for() -> None:
    finding = fit.measured_memory(*made_up())
    assert finding.level == "ok"
    assert finding.values["needed"] == 7 * GB + 1216 * 2 * 10**6
    assert "9.4 GB at 3,216" in finding.said
    assert "3.0 GB kept for later tensors" in finding.said
    assert fit.measured_memory(*made_up(available=int(9.5 * GB))).level == "warning"
    short = fit.measured_memory(*made_up(available=9 * GB))
    assert short.level == "error"
    assert "--batch-tokens" in short.advice and "--lora-rank" in short.advice


def test_an_estimate_that_does_not_fit_is_an_error() -> None:
    case, _ = made_up()
    total = case.estimate(3216).total
    assert fit.estimated_memory(case, 2 * total).level == "ok"
    assert fit.estimated_memory(case, round(1.02 * total)).level == "warning"
    assert fit.estimated_memory(case, total // 2).level == "error"


def test_a_model_that_does_not_fit_is_not_loaded() -> None:
    case, _ = made_up()
    with pytest.raises(UserError, match="the model alone takes"):
        fit.trial_of(case, case.estimate(0).total)


def test_what_is_measured_stays_within_memory_and_a_minute() -> None:
    case, _ = made_up()
    plenty = fit.trial_of(case, 10**12)
    assert plenty.sizes == (1608, 3216)
    assert plenty.run.max_length == 512
    tight = fit.trial_of(case, round((case.estimate(0).total + 1000 * case.slope) / 0.8))
    assert 990 <= tight.sizes[1] <= 1000
    large = replace(case, shape=replace(case.shape, parameters=10**9))
    assert fit.trial_of(large, 10**12).sizes == (83, 166)
    assert fit.trial_of(large, 10**12).run.max_length == 41


def test_a_wrong_estimate_is_shown() -> None:
    case, found = made_up()
    wrong = fit.agreement(case, found)
    assert wrong.level == "warning"
    assert wrong.values["measured"] == 3 * GB
    assert f"{wrong.values['ratio']:.2f} times" in wrong.said
    guess = case.estimate(2000).total
    taken = (replace(found.taken[0], memory=GB), replace(found.taken[1], memory=round(GB + guess / 1.1)))
    assert fit.agreement(case, replace(found, taken=taken)).level == "ok"
    assert fit.agreement(case, replace(found, taken=taken)).values["ratio"] == pytest.approx(1.1, rel=1e-3)


def test_the_largest_batch_by_the_slope_of_two_sizes() -> None:
    finding = fit.largest_batch(*made_up(available=20 * GB))
    assert finding.level == "ok"
    assert finding.values["batch_tokens"] == 2000 + 6000  # 19 GB less 7 GB, at 2 MB a token
    fewer = fit.largest_batch(*made_up(available=8 * GB))
    assert fewer.level == "warning"
    assert fewer.advice.startswith("set --batch-tokens 2300;")
    none = fit.largest_batch(*made_up(available=4 * GB))
    assert none.level == "error"
    assert "longest row has 804" in none.said


def test_one_size_has_the_slope_of_the_estimate() -> None:
    case, found = made_up()
    assert fit.slope_of(case, found) == 2 * 10**6
    assert fit.slope_of(case, replace(found, taken=found.taken[1:])) == 2 * case.slope
    assert fit.slope_of(case, replace(found, held=4 * GB)) == 10**6


def test_the_time_of_the_whole_run() -> None:
    case, found = made_up()
    finding = fit.time_needed(case, found)
    tokens = 100 * 8 * 804 + 8 * 804 / 3  # the reference reads all once
    assert finding.values["seconds"] == pytest.approx(tokens / 2000)
    assert finding.values["step_seconds"] == pytest.approx(8 * 804 / 2000)
    assert finding.level == "ok"
    slow = fit.time_needed(case, replace(found, seconds=1000.0))
    assert slow.level == "warning"
    assert "days" in slow.said or "hours" in slow.said


@dataclass(frozen=True, kw_only=True)
class Deadly(SFT):
    """Ends its process without a word, as the system does where memory runs out."""

    name = "deadly"
    data = "pair"

    def loss(self, policy: Any, batch: Any) -> Any:
        os._exit(9)


@dataclass(frozen=True, kw_only=True)
class Endless(SFT):
    """Takes longer than anyone waits."""

    name = "endless"
    data = "pair"

    def loss(self, policy: Any, batch: Any) -> Any:
        time.sleep(600)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "reason", "seconds"), [(Deadly, "killed", 300), (Endless, "longer than 5 s", 5)]
)
def test_a_measurement_that_dies_or_hangs_is_a_warning(method: Any, reason: str, seconds: float) -> None:
    run = RunConfig(max_length=512)
    findings = by_check(fit.case_findings(case_of(tiny.model_folder(), {}, run, method()), seconds))
    assert findings["memory, estimated"].level == "ok"
    assert findings["memory, measured"].level == "warning"
    assert reason in findings["memory, measured"].said
