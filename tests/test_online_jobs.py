"""`trimtab train ppo` and its like as a user runs them: what they leave, and that it can be repeated."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests import tiny
from tests.online_runs import curve, prepared, reward_model_words, same, scores, weights, words
from trimtab.cli import main
from trimtab.methods import METHODS

ONLINE = [name for name, method in METHODS.items() if method.online]
CRITICS, CLIPPED = {"a2c", "ppo", "ppo_kl", "trpo"}, {"ppo", "grpo", "rloo"}
IDS = torch.tensor([[0, 5, 9, 12, 7]])


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    prepared(tmp_path)
    capsys.readouterr()  # making the model said something
    return tmp_path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny.model_folder())


def metrics_of(method: str) -> set[str]:
    names = {"refresh", "score", "kl", "entropy", "length", "tokens", "sampling_gap", "loss"}
    names |= {"grad_norm"} if method != "trpo" else set()
    names |= {"critic_grad_norm"} if method in CRITICS else set()
    names |= {"old_kl", "learning_rate", "seconds", "tokens_per_second", "beta"}
    names |= {"explained_variance"} if method in CRITICS else set()
    names |= {"clip_fraction"} if method in CLIPPED else set()
    names |= {"kl_penalty"} if method == "ppo_kl" else set()
    names |= {"clip"} if method == "ppo" else set()
    return names | ({"step_accepted", "step_norm"} if method == "trpo" else set())


@pytest.mark.parametrize(
    ("method", "rank"), [*((method, 0) for method in ONLINE), ("ppo", 2), ("grpo", 2), ("trpo", 2)]
)
def test_every_method_leaves_a_model_its_curve_and_its_options(
    method: str, rank: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    assert main(words(method, folder, "--lora-rank", str(rank))) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"training {method}: 2/2" in printed.out and f"the model is in {out}\n" in printed.out
    model: Any = (AutoPeftModelForCausalLM if rank else AutoModelForCausalLM).from_pretrained(out)
    assert float((logits(model) - logits(base())).abs().max()) > 1e-3
    assert [p.name for p in out.iterdir() if p.is_dir()] == ["critic"] * (method in CRITICS)
    options = yaml.safe_load((out / "trimtab.yaml").read_text())
    assert (options["method"], options["lora_rank"], options["samples"]) == (method, rank, 2)
    state = json.loads((out / "state.json").read_text())
    assert state["refresh"] == 2 and state["coefficients"]["beta"] == 0.05
    assert ("kl_penalty" in state["coefficients"]) == (method == "ppo_kl")
    rows = tiny.read_jsonl(out / "metrics.jsonl")
    assert [row["refresh"] for row in rows] == [1, 2]
    assert rows[0].keys() == rows[1].keys() == metrics_of(method)
    assert rows[0]["kl"] == 0 != rows[1]["kl"]  # the policy is its own reference until it has moved
    assert all(row["sampling_gap"] < 1e-4 and 1 <= row["length"] <= 8 for row in rows)


def test_scores_and_samples_are_those_of_the_reward(folder: Path) -> None:
    """The mean of every collection stands in the curve, the best and the worst answer in samples.md."""
    options = ["--refreshes", "4", "--samples-every", "2", "--prompts", "3", "--samples", "5"]
    assert main(words("rloo", folder, *options)) == 0
    asked = tiny.read_jsonl(folder / "asked.jsonl")
    assert scores(folder / "out") == pytest.approx([sum(given) / 15 for _, _, given in asked])
    sections = (folder / "out" / "samples.md").read_text().split("## Refresh ")[1:]
    assert [section.split(":")[0] for section in sections] == ["1", "2", "4"]
    heading, best, *_, worst = [line for line in sections[0].splitlines() if line]
    assert heading == f"1: score {sum(asked[0][2]) / 15:.3g}"
    answers = list(zip(*asked[0], strict=True))
    for line, extreme in ((best, max(asked[0][2])), (worst, min(asked[0][2]))):
        of_score = [(prompt, " ".join(response.split())) for prompt, response, s in answers if s == extreme]
        assert line in [f"- **{extreme:.3g}** {prompt} → {text or '(nothing)'}" for prompt, text in of_score]
    assert max(asked[0][2]) > min(asked[0][2])


@pytest.mark.parametrize(
    ("critic", "options", "files"),
    [
        ("head", [], {"head.safetensors"}),
        (
            "adapter",
            ["--lora-rank", "2"],
            {"head.safetensors", "adapter_config.json", "adapter_model.safetensors"},
        ),
        ("model", [], {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}),
    ],
)
def test_every_kind_of_critic_is_left_beside_the_model(
    critic: str, options: list[str], files: set[str], folder: Path
) -> None:
    assert main(words("ppo", folder, "--critic", critic, *options)) == 0
    left = folder / "out" / "critic"
    assert {p.name for p in left.iterdir()} == files
    if critic == "model":
        assert logits(AutoModelForSequenceClassification.from_pretrained(left)).shape == (1, 1)
    else:
        assert load_file(left / "head.safetensors")["weight"].abs().max() > 0
    if critic == "adapter":
        model: Any = PeftModel.from_pretrained(base(), folder / "out")
        actor = logits(model)
        model.load_adapter(left, "critic")
        model.set_adapter("critic")
        assert float((logits(model) - logits(base())).abs().max()) > 1e-3
        assert float((logits(model) - actor).abs().max()) > 1e-3


def test_a_critic_may_start_as_a_reward_model(folder: Path) -> None:
    assert main(reward_model_words(folder, "rm")) == 0
    options = ["--critic", "model", "--critic-model", f"{folder}/rm", "--critic-learning-rate", "1e-12"]
    assert main(words("ppo", folder, *options)) == 0
    start, end = weights(folder / "rm"), weights(folder / "out" / "critic")
    assert start.keys() == end.keys()
    assert all(torch.allclose(start[name], end[name], rtol=0, atol=1e-9) for name in start)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ppo", ["--mix", "0.5", "--minibatch-size", "3", "--whiten-scores", "--top-k", "9"]),
        (
            "ppo_kl",
            ["--lora-rank", "2", "--critic", "adapter", "--temperature", "0.7", "--cut-off", "bootstrap"],
        ),
    ],
)
def test_its_options_repeat_the_run_to_the_last_bit(method: str, options: list[str], folder: Path) -> None:
    assert main(words(method, folder, *options, "--biased-sampling", out="first")) == 0
    repeat = ["train", method, "--config", f"{folder}/first/trimtab.yaml"]
    assert main([*repeat, "--out", f"{folder}/again"]) == 0
    assert main([*repeat, "--out", f"{folder}/other", "--seed", "1"]) == 0
    first, again, other = (folder / name for name in ("first", "again", "other"))
    assert curve(first) == curve(again) and len(curve(first)) == 2
    assert curve(first)[0]["kl"] == pytest.approx(0, abs=1e-5)  # at any temperature
    assert same(weights(first), weights(again))
    assert (first / "samples.md").read_text() == (again / "samples.md").read_text()
    assert curve(first) != curve(other)
    assert not same(weights(first), weights(other))


def test_the_score_rises(folder: Path) -> None:
    options = ["--refreshes", "12", "--prompts", "8", "--beta", "0", "--learning-rate", "1e-2"]
    assert main(words("ppo", folder, *options, "--epochs", "2", "--schedule", "constant")) == 0
    found = scores(folder / "out")
    assert found[0] < 1
    assert found[-1] > 2


def test_another_reference_is_at_a_distance_from_the_start(folder: Path) -> None:
    assert main(words("reinforce", folder, "--reference", tiny.model_folder(1))) == 0
    assert curve(folder / "out")[0]["kl"] > 1


def test_columns_of_questions_reach_functions_and_verifiers(folder: Path) -> None:
    """GSM8K's shape: the answer's last letter is the score; no answer of random letters is right."""
    rows = [{"question": prompt, "answer": "so\n#### 5"} for prompt in tiny.PROMPTS]
    data = tiny.write_jsonl(folder / "questions.jsonl", rows)
    (folder / "answers.py").write_text(
        "def last(prompts, responses, answer):\n"
        "    assert all(p[0]['role'] == 'user' for p in prompts)\n"
        "    return [float(a[-1]) * 100 for a in answer]\n"
    )
    options = ["--data", data, "--reward", f"{folder}/answers.py:last", "0.5*exact:answer"]
    assert main(words("rloo", folder, *options)) == 0
    assert scores(folder / "out") == [500.0, 500.0]
    assert "answers.py:last 500, exact:answer 0) the " in (folder / "out" / "samples.md").read_text()


def test_the_verifier_pays_for_right_answers(folder: Path) -> None:
    """The right answer to every question is one letter, which the policy learns to give."""
    rows = [{"question": prompt, "answer": "o"} for prompt in tiny.PROMPTS]
    data = tiny.write_jsonl(folder / "questions.jsonl", rows)
    options = ["--data", data, "--reward", "exact:answer", "--max-new-tokens", "1", "--learning-rate", "1e-2"]
    options += ["--refreshes", "15", "--samples", "16", "--beta", "0", "--schedule", "constant"]
    assert main(words("rloo", folder, *options)) == 0
    found = scores(folder / "out")
    assert found[0] < 0.2 and found[-1] > 0.8


@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_a_shared_reward_model_gives_the_scores_of_a_separate_one(critic: str, folder: Path) -> None:
    assert main(reward_model_words(folder, "rm", "--lora-rank", "2")) == 0
    options = ["--lora-rank", "2", "--critic", critic, "--reward", f"{folder}/rm"]
    assert main(words("ppo", folder, *options, "--share-reward", out="shared")) == 0
    assert main(words("ppo", folder, *options, out="separate")) == 0
    shared, separate = curve(folder / "shared"), curve(folder / "separate")
    for name, tolerance in (("score", 1e-4), ("kl", 1e-3)):
        assert [row[name] for row in shared] == pytest.approx([row[name] for row in separate], abs=tolerance)
    assert abs(shared[0]["score"]) > 0.1
    assert weights(folder / "shared").keys() == weights(folder / "separate").keys()


def test_only_one_reward_model_can_be_shared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in ("0", "1"):
        assert main(reward_model_words(folder, f"rm{seed}", "--lora-rank", "2", "--seed", seed)) == 0
    both = ["--reward", f"{folder}/rm0", f"0.5*{folder}/rm1"]
    assert main(words("rloo", folder, "--lora-rank", "2", "--share-reward", *both)) == 2
    assert f"{folder}/rm0 and {folder}/rm1 are two; one reward model can be shared" in capsys.readouterr().err
    assert main(words("rloo", folder, "--lora-rank", "2", *both)) == 0
