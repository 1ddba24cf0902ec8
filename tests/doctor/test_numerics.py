"""Every numeric check says ok of a healthy model, and finds the fault that it is there for."""

import json
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests import tiny
from tests.models import causal_model, letter_tokenizer, reward_model
from torch import Tensor, nn

from trimtab.doctor import bench as benches
from trimtab.doctor import numerics, training
from trimtab.doctor.bench import Bench, Gap, make_bench
from trimtab.doctor.findings import Finding
from trimtab.doctor.numerics import CHECKS, checked, numeric_findings
from trimtab.errors import UserError
from trimtab.feedback.records import Record
from trimtab.methods import Method, find
from trimtab.methods.sft import SFT
from trimtab.objectives.logprobs import masked_mean
from trimtab.policies import fused_lora, packing
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy
from trimtab.reference import cache_folder
from trimtab.rollouts import generate
from trimtab.train import RunConfig

RUN = RunConfig(max_length=64)
TEXTS = [
    ("the film is", " good.", " bad and a bore, and far too long for its plot."),
    ("the cast", " moves us and the music too.", " sleeps."),
    ("a plot is a plot is a plot", " no.", " yes."),
    ("scene by scene", " it ends well, which few do.", " it ends."),
    ("the story", " is a joy.", " is a bore."),
]
PAIRS = [Record("pair", prompt, (good, bad)) for prompt, good, bad in TEXTS]
DEMONSTRATIONS = [Record("demonstration", prompt, (good,)) for prompt, good, _ in TEXTS]
THUMBS = [Record("thumbs", p, (good,), desirable=i % 2 == 0) for i, (p, good, _) in enumerate(TEXTS)]
SCORES = [Record("score", p, (good, bad), scores=(1.0, float(-i))) for i, (p, good, bad) in enumerate(TEXTS)]
PROMPTS = [Record("prompt", prompt) for prompt, _, _ in TEXTS]
KINDS: Any = {"demonstration": DEMONSTRATIONS, "pair": PAIRS, "thumbs": THUMBS, "score": SCORES}


def config(**settings: Any) -> ModelConfig:
    return ModelConfig(tiny.model_folder(), device="cpu", **{"precision": "fp32", **settings})


def healthy(method: str | Method[Any] = "dpo", records: Any = None, **settings: Any) -> Bench:
    """A tiny model as it is loaded, and the method's data."""
    made: Any = find(method)() if isinstance(method, str) else method
    records = records or KINDS.get(made.data, PROMPTS if made.online else PAIRS)
    chosen = config(**settings)
    return make_bench(load_language_policy(chosen), chosen, records, RUN, method=made)


def bench_of(architecture: str, method: str = "dpo", **settings: Any) -> Bench:
    """A model of another architecture."""
    model = LanguagePolicy(causal_model(architecture, **settings), letter_tokenizer())
    return make_bench(model, config(), KINDS.get(find(method).data, PAIRS), RUN, method=find(method)())


def found(bench: Bench, check: str) -> Finding:
    finding = CHECKS[check](bench)
    assert finding.check == check
    return finding


def is_error(finding: Finding, *words: str, level: str = "error") -> bool:
    """True; where anything is otherwise, its own assertion says what."""
    assert finding.level == level
    assert finding.advice
    assert not finding.values["distance"] <= finding.values["tolerance"]
    for word in words:
        assert word in f"{finding.said} {finding.advice}"
    return True


@pytest.mark.parametrize(
    "name", ["sft", "dpo", "kto", "orpo", "score_weighted", "reward_model", "grpo", "ppo", "trpo"]
)
def test_a_healthy_model_passes_every_check(name: str) -> None:
    method: Any = find(name)()
    findings = numeric_findings(method, config(lora_rank=2), KINDS.get(method.data, PAIRS), RUN)
    assert [finding.check for finding in findings] == list(CHECKS)
    assert {finding.group for finding in findings} == {"numerics"}
    levels = {finding.check: finding.level for finding in findings}
    skipped = {"bf16 and fp32"}  # the run computes in fp32
    if method.trains == "reward model":
        skipped |= {"sampling and scoring", "adapter off and base"}
    if not method.needs_reference or method.online or method.trains == "reward model":
        skipped |= {"cached reference"}
    assert {check for check, level in levels.items() if level == "skipped"} == skipped
    assert set(levels.values()) == {"ok", "skipped"}, [
        f for f in findings if f.level not in ("ok", "skipped")
    ]


def test_a_healthy_model_passes_in_bf16_with_all_weights_and_with_an_adapter() -> None:
    for rank in (0, 2):
        findings = numeric_findings(find("dpo")(), config(precision="bf16", lora_rank=rank), PAIRS, RUN)
        levels = {finding.check: finding.level for finding in findings}
        assert levels.pop("adapter off and base") == ("ok" if rank else "skipped")
        assert set(levels.values()) == {"ok"}, findings
        by_name = {finding.check: finding for finding in findings}
        assert 1e-4 < by_name["bf16 and fp32"].values["distance"] < 0.05  # it was measured


def test_without_a_method_only_what_needs_none_is_looked_at() -> None:
    levels = {f.check: f.level for f in numeric_findings(None, config(), PAIRS, RUN)}
    skipped = {"bf16 and fp32", "cached reference", "micro-batches", "adapter off and base"}
    assert {check for check, level in levels.items() if level == "skipped"} == skipped
    assert set(levels.values()) == {"ok", "skipped"}
    assert {f.level for f in numeric_findings(None, config(), PROMPTS, RUN)} == {"ok", "skipped"}


def test_what_a_method_cannot_take_is_refused() -> None:
    with pytest.raises(UserError, match="demonstration"):
        numeric_findings(find("dpo")(), config(), DEMONSTRATIONS, RUN)
    with pytest.raises(UserError, match="no feedback"):
        numeric_findings(find("dpo")(), config(), [], RUN)


def test_the_rows_are_short_and_of_all_lengths() -> None:
    records = [Record("demonstration", f"p{'x' * i}", ("y" * (10 * i + 1),)) for i in range(200)]
    made = make_bench(
        load_language_policy(config()), config(), records, RunConfig(max_length=2048), method=SFT()
    )
    lengths = [len(prompt) + len(response) for prompt, response in made.rows]
    assert len(lengths) == 4
    assert max(lengths) == 128
    assert min(lengths) < 6


# What is planted: each of these turns one check, on a model that passes otherwise.


def test_a_model_that_ignores_positions_fails_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of("GPT2")
    assert found(bench, "left and right padding").level == "ok"
    forward = bench.model.trunk.decoder.forward
    monkeypatch.setattr(
        bench.model.trunk.decoder, "forward", lambda position_ids=None, **rest: forward(**rest)
    )
    assert is_error(found(bench, "left and right padding"), "left", "--generate-batch 1", level="warning")
    online = replace(bench, method=find("grpo")())
    assert is_error(found(online, "left and right padding"), "left", "--generate-batch 1")


def test_a_model_that_sees_padding_on_the_right_fails_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of("Llama")
    decoder = bench.model.trunk.decoder
    forward = decoder.forward

    def mixing(attention_mask: Any = None, **rest: Any) -> Any:
        """The last column leaks into all."""
        out = forward(attention_mask=attention_mask, **rest)
        if attention_mask is not None and not bool(attention_mask[:, -1].all()):
            out.last_hidden_state = out.last_hidden_state + out.last_hidden_state[:, -1:]
        return out

    monkeypatch.setattr(decoder, "forward", mixing)
    bench.model.trunk.packed = False
    assert is_error(found(bench, "left and right padding"), "right", "--batch-tokens 1")


@pytest.mark.parametrize(
    "make",
    [
        lambda: bench_of("Llama"),
        lambda: bench_of("GPT2"),
        lambda: healthy(precision="bf16"),
        lambda: healthy(precision="bf16", lora_rank=2),
    ],
)
def test_attention_that_leaks_between_packed_rows_is_found(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaks in sequences longer than those that the trunk tries itself."""
    honest = packing.attend

    def leaking(packed: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, **rest: Any) -> Tensor:
        out = honest(packed, query, key, value, scale, **rest)
        return (
            out
            if len(query) < 20
            else out + 0.5 * value.mean(0).repeat_interleave(query.shape[1] // value.shape[1], 0)
        )

    bench = make()
    assert found(bench, "packed and alone").level == "ok"
    monkeypatch.setattr(packing, "attend", leaking)
    monkeypatch.setattr("trimtab.policies.trunk.attend", leaking)
    assert is_error(found(bench, "packed and alone"), "--without packing")


def test_a_model_that_runs_padded_skips_what_is_about_packing() -> None:
    bench = bench_of("Gemma2")
    for check in ("packed and alone", "shared prompts", "fused pass"):
        assert found(bench, check).level == "skipped"
    assert "Gemma2Model" in found(bench, "packed and alone").said


def test_a_prompt_that_is_not_the_one_read_first_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of("Llama")
    assert found(bench, "shared prompts").level == "ok"
    honest = packing.Packing.of

    def shifted(sequences: Any, *, shared: bool = True) -> Any:
        made = honest(sequences, shared=shared)
        return replace(made, slots=(made.slots + 1).clamp(max=len(made.read) - 1)) if shared else made

    monkeypatch.setattr(packing.Packing, "of", shifted)
    assert is_error(found(bench, "shared prompts"), "--without shared-prompts")


def test_a_fused_pass_that_forgets_a_weight_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of("Qwen3")
    assert found(bench, "fused pass").level == "ok"
    bench.model.trunk.decoder.layers[1].mlp.register_forward_hook(lambda module, inputs, out: 1.1 * out)
    assert is_error(found(bench, "fused pass"), "--without fused")


def test_a_fused_adapter_that_is_scaled_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start of training B is zero, and every scale would do."""
    bench = healthy(lora_rank=2)
    assert found(bench, "fused pass").level == "ok"
    honest = fused_lora._sum
    monkeypatch.setattr(fused_lora, "_sum", lambda given: honest((*given[:-1], 3 * given[-1])))
    assert is_error(found(bench, "fused pass"), "--without fused")


def test_a_model_that_bf16_rounds_away_is_found() -> None:
    bench = healthy(precision="bf16")
    assert found(bench, "bf16 and fp32").level == "ok"
    with torch.no_grad():
        bench.model.trunk.hf.get_output_embeddings().weight.mul_(30)
    assert is_error(found(bench, "bf16 and fp32"), "--precision fp32", level="warning")


def test_dropout_that_is_left_on_is_found() -> None:
    bench = bench_of("GPT2")
    bench.model.model.train()
    assert found(bench, "first ratio").level == "ok"
    assert found(bench, "first ratio").values["distance"] == 0
    for module in bench.model.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    assert is_error(found(bench, "first ratio"), "dropout")


def test_a_sampler_of_another_temperature_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = healthy("grpo")
    assert found(bench, "sampling and scoring").level == "ok"
    choose = generate._choose
    monkeypatch.setattr(generate, "_choose", lambda logits, *rest: choose(logits / 0.8, *rest))
    assert is_error(found(bench, "sampling and scoring"), "--without fused")
    assert is_error(found(replace(bench, method=find("dpo")()), "sampling and scoring"), level="warning")


def test_a_cached_reference_that_was_altered_is_found() -> None:
    from safetensors.torch import load_file

    from trimtab.reference import _write

    bench = healthy("dpo")
    assert found(bench, "cached reference").level == "ok"
    [file] = (cache_folder() / "reference").glob("*.safetensors")
    assert found(bench, "cached reference").level == "ok"  # now read from the file
    values = load_file(file)["logprobs"]
    _write(file, values + 0.01)
    assert is_error(found(bench, "cached reference"), "0.01", "delete")


def test_the_cache_that_training_will_read_is_looked_at() -> None:
    """Of all the data, not of the few rows alone."""
    from safetensors.torch import load_file

    from trimtab.reference import _write, attach_reference
    from trimtab.train import make_table

    bench = healthy("dpo", records=[*PAIRS, *(replace(r, prompt=f"{r.prompt} so") for r in PAIRS)])
    whole = make_table(find("dpo")(), bench.records, bench.model.tokenizer, RUN)
    attach_reference(whole, bench.model, batch_tokens=RUN.batch_tokens)
    [file] = (cache_folder() / "reference").glob("*.safetensors")
    finding = found(bench, "cached reference")
    assert finding.level == "ok"
    assert str(file) in finding.said
    _write(file, load_file(file)["logprobs"].flip(0))
    assert is_error(found(bench, "cached reference"), f"delete {file}")


@dataclass(frozen=True, kw_only=True)
class MeanOfMeans(SFT):
    """One loss for each part, whatever is in it."""

    name = "mean_of_means"

    def units(self, batch: Any) -> int:
        return 1

    def loss(self, policy: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return -masked_mean(policy.logprobs(batch.sequences), batch.sequences.mask).mean()[None], {}


@dataclass(frozen=True, kw_only=True)
class TokenMean(SFT):
    """The mean over a part's tokens, which counts as much as that of a longer part."""

    name = "token_mean"

    def units(self, batch: Any) -> int:
        return 1

    def loss(self, policy: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return -policy.logprobs(batch.sequences)[batch.sequences.mask].mean()[None], {}


@pytest.mark.parametrize("method", [MeanOfMeans, TokenMean])
def test_a_loss_that_is_a_mean_of_means_is_found(method: Any) -> None:
    assert found(healthy("sft"), "micro-batches").level == "ok"
    assert is_error(found(healthy(method()), "micro-batches"), "--batch-tokens")


@pytest.mark.parametrize("fault", ["weight", "gradient", "frozen"])
def test_gradients_that_are_no_numbers_or_nothing_are_found(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = healthy("sft")
    assert found(bench, "finite gradients").level == "ok"
    name, weight = next(iter(bench.model.model.named_parameters()))
    if fault == "weight":
        with torch.no_grad():
            weight[3, 4] = math.nan
    elif fault == "gradient":
        weight.register_hook(lambda grad: grad.fill_(math.inf))
    else:
        monkeypatch.setattr(benches, "values", None)
        bench = healthy(Silent())
    finding = found(bench, "finite gradients")
    assert finding.level == "error"
    assert (name in finding.said) == (fault != "frozen")


@dataclass(frozen=True, kw_only=True)
class Silent(SFT):
    """A loss without slope."""

    name = "silent"

    def loss(self, policy: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        losses = 0.0 * policy.logprobs(batch.sequences)[batch.sequences.mask] + 1.0
        return losses, {}


def test_an_adapter_that_stays_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = healthy(lora_rank=2)
    assert found(bench, "adapter off and base").level == "ok"
    monkeypatch.setattr(bench.model.model, "disable_adapter", nullcontext)
    assert is_error(found(bench, "adapter off and base"), "--reference")


def test_an_adapter_that_does_nothing_is_found() -> None:
    bench = healthy(lora_rank=2)
    for module in bench.model.model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] = 0.0
    finding = found(bench, "adapter off and base")
    assert finding.level == "error"
    assert "nothing would be learned" in finding.said


@pytest.mark.parametrize("rank", [0, 2])
def test_a_save_that_loses_a_tensor_is_found(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = healthy(lora_rank=rank)
    assert found(bench, "saved and loaded").level == "ok"
    save = bench.model.save

    def losing(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        save(folder)
        [file] = folder.glob("*.safetensors")
        tensors = load_file(file)
        lost = next(name for name in tensors if "layers.1" in name and ("lora_B" in name or not rank))
        save_file({n: t for n, t in tensors.items() if n != lost}, file, metadata={"format": "pt"})

    monkeypatch.setattr(bench.model, "save", losing)
    finding = found(bench, "saved and loaded")
    assert finding.level == "error"


def test_a_save_in_lower_precision_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = healthy()

    def rounded(folder: Path) -> None:
        bench.model.model.to(torch.float8_e4m3fn).to(torch.float32).save_pretrained(folder)
        bench.model.tokenizer.save_pretrained(folder)

    monkeypatch.setattr(bench.model, "save", rounded)
    assert is_error(found(bench, "saved and loaded"), "not the trained one")


def test_a_model_too_large_to_be_written_for_a_look_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LARGEST_SAVED", 1000)
    finding = found(healthy(), "saved and loaded")
    assert finding.level == "skipped"
    monkeypatch.setattr(training, "LARGEST_SAVED", 8e9)
    monkeypatch.setattr(training, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    finding = found(healthy(), "saved and loaded")
    assert finding.level == "warning"
    assert "no room" in finding.said


def test_a_model_that_cannot_be_sampled_from_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*args: Any, **settings: Any) -> Any:
        raise UserError("MambaForCausalLM has no key-value cache")

    bench = healthy("grpo")
    monkeypatch.setattr(benches, "generate", refusing)
    finding = found(bench, "sampling and scoring")
    assert finding.level == "error"
    assert "no key-value cache" in finding.said


def test_logits_that_are_not_understood_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(*args: Any, **settings: Any) -> Any:
        raise ValueError("OddForCausalLM computes its logits in a way not known here")

    monkeypatch.setattr(numerics, "load_language_policy", strange)
    [finding] = numeric_findings(find("dpo")(), config(), PAIRS, RUN)
    assert finding.level == "error"
    assert "OddForCausalLM" in finding.said


def test_checks_leave_the_model_as_it_was() -> None:
    bench = healthy("dpo", lora_rank=2)
    before = {name: weight.clone() for name, weight in bench.model.model.named_parameters()}
    checked(bench)
    for name, weight in bench.model.model.named_parameters():
        assert torch.equal(weight, before[name]), name
        assert weight.grad is None
    trunk = bench.model.trunk
    assert trunk.packed and trunk.fused and trunk.shared


def test_a_check_without_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(bench: Bench) -> Finding:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def wrong(bench: Bench) -> Finding:
        raise RuntimeError("shapes do not match")

    monkeypatch.setitem(CHECKS, "packed and alone", full)
    monkeypatch.setitem(CHECKS, "bf16 and fp32", full)  # which holds two models
    findings = {finding.check: finding for finding in checked(healthy("dpo"))}
    assert findings["packed and alone"].level == "error"
    assert "not enough memory" in findings["packed and alone"].said
    assert findings["bf16 and fp32"].level == "skipped"
    monkeypatch.setitem(CHECKS, "fused pass", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        checked(healthy("dpo"))


def test_what_is_no_number_is_null_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(bench: Bench) -> Finding:
        return Finding(
            "numerics", "fused pass", "error", "", "", values={"distance": math.inf, "weights": ["a"]}
        )

    monkeypatch.setitem(CHECKS, "fused pass", nan)
    findings = {finding.check: finding for finding in checked(healthy("dpo"))}
    assert json.loads(json.dumps(findings["fused pass"].row(), allow_nan=False))["values"] == {
        "distance": None,
        "weights": ["a"],
    }


def test_a_gap_to_what_is_no_number_is_infinite() -> None:
    assert Gap.of(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0])) == Gap(0.5, 0.25)
    assert Gap.of(torch.tensor([1.0, math.nan]), torch.tensor([1.0, 2.0])) == Gap(math.inf, math.inf)


def test_a_reward_model_is_tried_by_its_scores() -> None:
    made = reward_model("Llama")
    bench = make_bench(made, config(), PAIRS, RUN, method=find("reward_model")())
    assert found(bench, "packed and alone").level == "ok"
    assert "points of score" in found(bench, "packed and alone").said
    honest = made.scores
    made.scores = partial(lambda sequences: honest(sequences) + torch.rand(()))  # type: ignore[method-assign]
    assert is_error(found(bench, "first ratio"))
