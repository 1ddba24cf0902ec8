"""On a GPU the same as on the CPU: log-probs, gradients, greedy answers, runs on recorded feedback, resumed
ones. Runs on a model's own answers, which are other draws there, are held to what was drawn.

make gpu                                          these, and what a GPU is measured by
TRIMTAB_TEST_DEVICE=cpu pytest tests/gpu          the tests themselves, tried where there is no GPU
"""

import math
import os
import signal
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.interrupted import Signals
from tests.models import SETTINGS, alone, causal_model, gradients, letter_tokenizer, pack, random_rows
from tests.online_runs import curve, prepared, weights, words
from trimtab import recorder
from trimtab.cli import main
from trimtab.methods import METHODS
from trimtab.objectives import logprobs
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy
from trimtab.rollouts.generate import Sampling, generate

DEVICE = os.environ.get("TRIMTAB_TEST_DEVICE", "cuda")
asked = "TRIMTAB_TEST_DEVICE" in os.environ  # then a GPU that is not there is an error
pytestmark = pytest.mark.skipif(not (asked or torch.cuda.is_available()), reason="no GPU")

ROWS = [*random_rows(6, longest=30), (random_rows(1)[0][0], [9, 8, 1]), (random_rows(1)[0][0], [7, 1])]
OFFLINE = sorted(name for name, method in METHODS.items() if not method.online)
ONLINE = sorted(name for name, method in METHODS.items() if method.online)
WRITTEN = {
    "pair": tiny.pairs,
    "thumbs": tiny.thumbs,
    "demonstration": tiny.demonstrations,
    "score": tiny.scores,
}
CLOSE = {"fp32": (2e-5, 2e-4), "bf16": (0.01, 0.05)}  # losses of the first step, and of the next three


@pytest.fixture(autouse=True)
def exact_products() -> Any:
    """TF32 would be compared with fp32 otherwise."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def on_device(architecture: str, dtype: torch.dtype = torch.float32) -> LanguagePolicy:
    return LanguagePolicy(causal_model(architecture).to(DEVICE, dtype), letter_tokenizer())


def offline_words(method: str, folder: Path, *options: str) -> list[str]:
    """A short run of an offline method, without --out."""
    data = tiny.write_jsonl(folder / "data.jsonl", WRITTEN.get(METHODS[method].data, tiny.pairs)())
    short = ["--steps", "4", "--batch-size", "4", "--learning-rate", "1e-3", "--precision", "fp32"]
    return ["train", method, "--model", tiny.model_folder(), "--data", data, *short, *options]


def run(method: str, folder: Path, device: str, *options: str) -> Path:
    """Its folder, which no other run has."""
    out = folder / f"run-{len(list(folder.iterdir()))}"
    assert main([*offline_words(method, folder, "--device", device, *options), "--out", str(out)]) == 0
    return out


def assert_close_curves(one: Path, other: Path, precision: str = "fp32") -> None:
    found, expected = (torch.tensor([row["loss"] for row in curve(folder)]) for folder in (one, other))
    for steps, close in zip((slice(0, 1), slice(1, None)), CLOSE[precision], strict=True):
        torch.testing.assert_close(found[steps], expected[steps], rtol=close, atol=close)


@pytest.fixture(params=["whole", "in blocks"])
def head(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny vocabulary at once, or in several blocks of rows and columns."""
    if request.param == "in blocks":
        monkeypatch.setattr(logprobs, "_block", lambda *_: (16, 12))


@pytest.mark.parametrize("without", [(), ("fused",), ("shared-prompts",), ("packing",)])
@pytest.mark.parametrize("architecture", SETTINGS)
def test_logprobs_and_gradients(architecture: str, without: tuple[str, ...], head: None) -> None:
    learner = on_device(architecture)
    learner.trunk.without(without)
    known = causal_model(architecture)
    expected = [alone(known, *row) for row in ROWS]
    sequences = pack(ROWS).to(torch.device(DEVICE))
    found = learner.logprobs(sequences)[sequences.mask]
    torch.testing.assert_close(found.cpu(), torch.cat(expected), rtol=1e-4, atol=1e-4)
    torch.cat(expected).square().sum().backward()
    found.square().sum().backward()
    ours, theirs = (gradients(list(model.parameters())).cpu() for model in (learner.model, known))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Mistral", "GPT2"])
def test_the_techniques_are_the_same_in_bf16(architecture: str) -> None:
    """The techniques are chosen on the device itself: none may be lost on the way there."""
    there = on_device(architecture, torch.bfloat16).trunk
    here = LanguagePolicy(causal_model(architecture), letter_tokenizer()).trunk
    assert (there.packed, there.fused) == (here.packed, here.fused)


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "GPT2"])
@pytest.mark.parametrize("samples", [1, 3])
def test_greedy_answers(architecture: str, samples: int) -> None:
    here = LanguagePolicy(causal_model(architecture), letter_tokenizer())
    prompts = [prompt for prompt, _ in ROWS]
    sampling = Sampling(max_new_tokens=40, temperature=0.0, batch_size=5)
    known, found = (generate(p, prompts, sampling, samples=samples) for p in (here, on_device(architecture)))
    for theirs, ours in zip(chain(*known), chain(*found), strict=True):
        assert ours.tokens == theirs.tokens and ours.ended == theirs.ended
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


def test_draws_follow_the_distribution() -> None:
    policy = on_device("Llama")
    drawn = generate(policy, [[4, 5, 6]], Sampling(max_new_tokens=1), samples=4000)[0]
    counts = torch.bincount(torch.tensor([answer.tokens[0] for answer in drawn]), minlength=40)
    chances = causal_model("Llama")(input_ids=torch.tensor([[4, 5, 6]])).logits[0, -1].softmax(-1).detach()
    error = (counts / 4000 - chances).abs() / (chances * (1 - chances) / 4000).sqrt()
    assert float(error.max()) < 5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", OFFLINE)
def test_a_run_on_recorded_feedback(method: str, precision: str, tmp_path: Path, head: None) -> None:
    here = run(method, tmp_path, "cpu")
    there = run(method, tmp_path, DEVICE, "--precision", precision)
    assert_close_curves(there, here, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ONLINE)
def test_a_run_on_its_own_answers(method: str, precision: str, tmp_path: Path) -> None:
    """Answers are other draws there, but they must have been drawn from what the training computes."""
    options = ("--device", DEVICE, "--precision", precision, "--epochs", "2", "--minibatch-size", "4")
    assert main(words(method, prepared(tmp_path), *options)) == 0
    for row in curve(tmp_path / "out"):
        assert all(math.isfinite(value) for name, value in row.items() if name != "explained_variance")
        assert row["sampling_gap"] < (1e-3 if precision == "fp32" else 0.3)


@pytest.mark.parametrize("critic", ["head", "adapter", "model"])
def test_every_critic(critic: str, tmp_path: Path) -> None:
    options = ("--device", DEVICE, "--critic", critic, "--lora-rank", "2" if critic == "adapter" else "0")
    assert main(words("ppo", prepared(tmp_path), *options)) == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("without", ["", "fused-lora,frozen-head"])
def test_adapters(precision: str, without: str, tmp_path: Path, head: None) -> None:
    options = ["--lora-rank", "4", *(["--without", without] if without else [])]
    here = run("dpo", tmp_path, "cpu", "--lora-rank", "4")
    there = run("dpo", tmp_path, DEVICE, *options, "--precision", precision)
    assert_close_curves(there, here, precision)


def test_options_that_save_memory_change_nothing(tmp_path: Path) -> None:
    plain = run("dpo", tmp_path, DEVICE)
    saving = ("--gradient-checkpointing", "--batch-tokens", "40")
    assert_close_curves(run("dpo", tmp_path, DEVICE, *saving), plain)


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_a_resumed_run(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to the last bit: a GPU's sums have no fixed order."""
    make = offline_words if method == "dpo" else words
    command = [*make(method, prepared(tmp_path)), "--device", DEVICE]
    assert main([*command, "--out", f"{tmp_path}/through"]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(recorder, "Interruption", Signals(3))
        assert main([*command, "--out", f"{tmp_path}/stopped"]) == 128 + signal.SIGTERM
    assert main(["resume", f"{tmp_path}/stopped"]) == 0
    one, other = weights(tmp_path / "through"), weights(tmp_path / "stopped")
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-4, atol=1e-5)


def test_the_doctor_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.pairs())
    given = ["--model", tiny.model_folder(), "--data", data, "--device", DEVICE, "--only", "numerics", "fit"]
    assert main(["doctor", "--method", "dpo", *given]) == 0, capsys.readouterr().out


def test_a_policy_is_loaded_where_it_is_asked_for() -> None:
    policy = load_language_policy(ModelConfig(tiny.model_folder(), device=DEVICE))
    assert policy.device.type == torch.device(DEVICE).type
