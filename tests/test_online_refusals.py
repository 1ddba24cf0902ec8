"""What is wrong with a run of reinforcement learning, said in one sentence, and what is left then."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.online_runs import curve, prepared, scores, words
from trimtab.cli import main


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    prepared(tmp_path)
    capsys.readouterr()  # making the model said something
    return tmp_path


def refusal(given: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that must end before anything is written."""
    before = sorted(folder.iterdir())
    assert main(given) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("trimtab: ")
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
    assert sorted(p for p in folder.iterdir() if p.name not in ("cache", "__pycache__")) == before
    return printed.err


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ppo", ["--top-p", "0.9"], "--top-p: answers drawn so have other probabilities than the policy"),
        ("ppo", ["--top-k", "5"], "--top-k: answers drawn so have other probabilities than the policy"),
        ("ppo", ["--top-p", "0", "--biased-sampling"], "top_p is 0; it must be a number above 0"),
        ("ppo", ["--top-p", "1.5", "--biased-sampling"], "top_p is 1.5; it must be from 0 to 1"),
        ("grpo", ["--cut-off", "bootstrap"], "--cut-off bootstrap needs a critic, which grpo has not"),
        ("reinforce", ["--cut-off", "bootstrap"], "needs a critic, which reinforce has not"),
        ("grpo", ["--samples", "1"], "grpo compares the answers to a prompt with each other; --samples must"),
        ("rloo", ["--samples", "1"], "rloo compares the answers to a prompt with each other; --samples must"),
        ("ppo", ["--critic", "adapter"], "--critic adapter needs --lora-rank"),
        ("ppo", ["--critic-model", "x"], "--critic-model is only used with --critic model"),
        ("ppo", ["--critic", "model", "--critic-model", "./x"], "./x: no such folder"),
        ("ppo", ["--temperature", "0"], "temperature is 0: without chance there is nothing to learn from"),
        ("ppo", ["--temperature", "-1"], "temperature is -1; it must be 0 or more"),
        ("ppo", ["--reward", "nothing"], "nothing: not a reward; pass a reward model's folder"),
        ("ppo", ["--reward", "exct:answer"], "exct:answer: not a reward; pass a reward model's folder"),
        ("ppo", ["--reward", "{folder}/r.py:jo"], "r.py: has no function 'jo'; did you mean 'joy'?"),
        ("ppo", ["--reward", "./nothing.py:f"], "nothing.py: there is no such file"),
        ("ppo", ["--reward", "{model}"], "not a reward model: it has no score head; train one first"),
        ("ppo", ["--reward-timeout", "0"], "--reward-timeout is 0; it must be a number of seconds above 0"),
        ("ppo", ["--max-length", "8"], "--max-new-tokens leaves no room for a prompt in --max-length"),
        ("ppo", ["--max-length", "7"], "--max-new-tokens leaves no room for a prompt in --max-length"),
        ("ppo", ["--out", "{folder}"], " exists already; choose another --out, or delete it"),
        ("ppo", ["--mix", "1"], "mix is 1; it must be from 0 to 0.99"),
        ("ppo", ["--refreshes", "0"], "refreshes is 0; it must be a number above 0"),
        ("ppo", ["--samples-every", "0"], "samples_every is 0; it must be a number above 0"),
        ("ppo", ["--clip-scores", "-1"], "clip_scores is -1; it must be a number above 0"),
        ("ppo", ["--cut-off", "never"], "invalid choice 'never'"),
        ("ppo", ["--steps", "3"], "unknown option --steps"),
        (
            "trpo",
            ["--learning-rate", "1e-3"],
            "--learning-rate: trpo moves the policy without one, by --max-kl",
        ),
        ("ppo", ["--share-reward"], "--share-reward: no --reward is a reward model's folder; leave it out"),
        (
            "ppo",
            ["--lora-rank", "2", "--share-reward", "--reward", "{model}"],
            "not a LoRA reward model, so it cannot share the policy's trunk",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence_before_anything_is_written(
    method: str, options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [option.format(folder=folder, model=tiny.model_folder()) for option in options]
    assert message in refusal(words(method, folder, *given), folder, capsys)


def test_the_reward_must_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words("ppo", folder)
    place = given.index("--reward")
    said = refusal(given[:place] + given[place + 2 :], folder, capsys)
    assert "--reward is missing; see trimtab train ppo --help" in said


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_library_that_is_not_installed_is_missed_first(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)  # an import fails
    said = refusal(words("ppo", folder, "--log-to", name), folder, capsys)
    assert f"--log-to {name}: not installed; pip install {name}" in said


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("rloo", ["--reward", "exact:solution"], "the records have no column 'solution' to compare with"),
        ("rloo", ["--reward", "{folder}/bad.py:none"], "bad.py:none: gave 0 scores for 8 responses"),
        ("trpo", ["--parameters", "nowhere"], "--parameters nowhere: no trained parameter is named so"),
    ],
)
def test_where_nothing_was_learned_the_command_can_be_given_again(
    method: str, options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.py").write_text("def none(prompts, responses):\n    return []\n")
    assert main(words(method, folder, *[option.format(folder=folder) for option in options])) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not (folder / "out").exists()
    assert main(words(method, folder)) == 0


def test_a_reward_that_fails_in_the_middle_names_the_answer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the third collection the function divides by where in the prompt a word stands."""
    (folder / "bad.py").write_text(
        "calls = 0\n"
        "def score(prompts, responses):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls < 3:\n"
        "        return [1.0 for _ in responses]\n"
        "    return [1 / prompt.index('cast') for prompt in prompts]\n"
    )
    tiny.write_jsonl(folder / "prompts.jsonl", [{"prompt": "cast"}, {"prompt": "a cast"}])
    given = words("rloo", folder, "--reward", f"{folder}/bad.py:score", "--prompts", "2", "--refreshes", "9")
    assert main(given) == 2
    said = capsys.readouterr().err
    assert f"{folder}/bad.py:7: the reward failed with ZeroDivisionError: division by zero; " in said
    assert "alone, the first sample that fails is " in said and "to the prompt 'cast'" in said
    assert said.count("\n") == 1
    assert [row["refresh"] for row in curve(folder / "out")] == [1, 2]
    assert (folder / "out" / "samples.md").exists() and (folder / "out" / "trimtab.yaml").exists()
    assert not (folder / "out" / "model.safetensors").exists()


def test_prompts_that_are_too_long_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Room for 12 tokens; prompts of letters, one token each."""
    tiny.write_jsonl(folder / "prompts.jsonl", [{"prompt": "x" * n} for n in (11, 12, 13, 14, 15)])
    assert main(words("rloo", folder, "--max-length", "20")) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said == "[WARNING] 3 of 5 prompts lost their beginning: they have over 12 tokens"


def test_what_is_no_number_is_null_in_the_curve(folder: Path) -> None:
    """All scores are equal and KL is free, so that a critic has nothing to explain."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    assert main(words("ppo", folder, "--reward", "regex:0", "--beta", "0")) == 0
    assert scores(folder / "out") == [0.0, 0.0]
    for line in (folder / "out" / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=refuse)
        assert row["explained_variance"] is None and math.isfinite(row["loss"])


def test_a_run_away_policy_is_warned_of_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--refreshes", "6", "--learning-rate", "0.5", "--schedule", "constant", "--beta", "0"]
    assert main(words("reinforce", folder, *options, "--max-new-tokens", "24")) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the KL to the reference is ") == 1
