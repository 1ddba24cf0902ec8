"""Heads, adapters and the reference."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models import SETTINGS, alone, causal_model, letter_tokenizer, pack, policy, random_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab.objectives import logprobs
from trimtab.policies.language import LanguagePolicy

ROWS = random_rows(4, seed=3)


def with_adapter(**settings: Any) -> LanguagePolicy:
    """A policy whose adapter already changes its output."""
    lora = LoraConfig(**{"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})
    model = get_peft_model(causal_model(), lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return LanguagePolicy(model, letter_tokenizer())


@pytest.mark.parametrize("held", [1, 5 * 40, 1000 * 40])
def test_the_head_in_blocks_equals_all_the_logits(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(logprobs, "HELD_ON_CPU", held)
    learner, sequences = policy(), pack(ROWS)
    with torch.no_grad():
        ours = learner.logprobs(sequences)[sequences.mask]
        expected = torch.cat([alone(learner.model, p, r) for p, r in ROWS])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("Gemma2", {"final_logit_softcapping": 3.0}),
        ("Granite", {"logits_scaling": 4.0}),
        ("Cohere", {"logit_scale": 0.5}),
    ],
)
def test_heads_that_scale_or_cap_their_logits(architecture: str, settings: dict[str, Any]) -> None:
    SETTINGS.setdefault(architecture, SETTINGS["Llama"])
    learner = policy(architecture, **settings)
    sequences = pack(ROWS)
    with torch.no_grad():
        ours = learner.logprobs(sequences)[sequences.mask]
        expected = torch.cat([alone(learner.model, p, r) for p, r in ROWS])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_head_that_is_not_known_is_refused() -> None:
    model = causal_model()

    class Odd(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.sin()
            return out

    model.__class__ = Odd
    with pytest.raises(ValueError, match="computes its logits in a way not known here"):
        LanguagePolicy(model, letter_tokenizer())


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_the_reference_is_the_policy_without_its_adapter(targets: Any) -> None:
    learner, base, sequences = with_adapter(target_modules=targets), policy(), pack(ROWS)
    with torch.no_grad():
        adapted, plain = learner.logprobs(sequences), base.logprobs(sequences)
        expected = torch.cat([alone(learner.model, p, r) for p, r in ROWS])
        with learner.reference():
            torch.testing.assert_close(learner.logprobs(sequences), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(adapted[sequences.mask], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(adapted, plain, atol=1e-2)
    assert learner.has_adapter and not base.has_adapter


def test_only_the_adapter_is_trained() -> None:
    learner = with_adapter()
    names = [name for name, p in learner.model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)
    assert len(learner.parameters()) == len(names)
    learner.logprobs(pack(ROWS)).sum().backward()
    assert all(p.grad is not None for p in learner.parameters())


def test_a_policy_without_adapter_has_no_reference_of_its_own() -> None:
    with pytest.raises(ValueError, match="adapter"), policy().reference():
        pass


def test_saved_weights_load_with_transformers(tmp_path: Path) -> None:
    learner, sequences = policy("Qwen3"), pack(ROWS)
    learner.save(tmp_path)
    again = LanguagePolicy(
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    with torch.no_grad():
        torch.testing.assert_close(again.logprobs(sequences), learner.logprobs(sequences), rtol=0, atol=1e-6)
    assert not list(tmp_path.glob("*.bin"))
