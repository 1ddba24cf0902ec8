"""`trimtab generate` and `trimtab evaluate` on a tiny model."""

from pathlib import Path

import pytest

from tests import tiny
from tests.models import causal_model, letter_tokenizer
from trimtab.cli import main

SHORT = ["--max-new-tokens", "6", "--precision", "fp32"]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return tiny.write_jsonl(tmp_path / "pairs.jsonl", [*tiny.pairs(), *tiny.pairs()])


@pytest.fixture
def reward(tmp_path: Path) -> str:
    (tmp_path / "r.py").write_text(
        "def letters(prompts, responses):\n    return [len(r) for r in responses]\n"
    )
    return f"{tmp_path}/r.py:letters"


def test_answers_to_typed_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["generate", tiny.model_folder(), "--prompt", "the film is", "a", "--samples", "2", *SHORT]
    assert main([*given, "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("the film is") == 2
    assert main([*given, "--seed", "3"]) == 0
    assert capsys.readouterr().out == shown
    assert main([*given, "--seed", "4"]) == 0
    assert capsys.readouterr().out != shown


def test_answers_to_a_file_go_to_a_file(prompts: str, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "answers.jsonl"
    given = ["generate", tiny.model_folder(), "--data", prompts, "--out", str(out), *SHORT]
    assert main([*given, "--most", "5"]) == 0
    rows = tiny.read_jsonl(out)
    assert [row["prompt"] for row in rows] == list(tiny.PROMPTS[:5])  # each prompt once
    assert all(set(row) == {"prompt", "response", "ended"} for row in rows)
    assert main(given) == 2  # it exists


def test_a_model_with_a_template_is_asked_in_a_conversation(tmp_path: Path) -> None:
    causal_model().save_pretrained(tmp_path / "chat")
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chat")
    out = tmp_path / "answers.jsonl"
    assert main(["generate", str(tmp_path / "chat"), "--prompt", "hi", "--out", str(out), *SHORT]) == 0
    assert [row["prompt"] for row in tiny.read_jsonl(out)] == [[{"role": "user", "content": "hi"}]]


def test_nothing_to_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", tiny.model_folder()]) == 2
    assert "nothing to answer: pass --prompt 'some text', or --data FILE" in capsys.readouterr().err


def test_measures_of_a_model(
    prompts: str, reward: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.jsonl"
    options = ["--data", prompts, "--reward", reward, "--reference", tiny.model_folder(1), "--out", str(out)]
    assert main(["evaluate", tiny.model_folder(), *options, *SHORT]) == 0
    rows = tiny.read_jsonl(out)
    assert [row["prompt"] for row in rows] == list(tiny.PROMPTS)
    shown = capsys.readouterr().out
    letters = sum(len(row["response"]) for row in rows) / len(rows)
    kl = sum(row["kl"] for row in rows) / len(rows)
    for name, mean in ((reward.rsplit("/", maxsplit=1)[-1], letters), ("kl (nats)", kl)):
        (line,) = (line for line in shown.splitlines() if name in line)
        assert f" {mean:.3f} " in line
    assert "one answer to each of 8 prompts" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward", "nothing"], "nothing: not a reward; pass a reward model's folder"),
        (["--reference", "./nothing"], "./nothing: no such folder"),
        (["--data", "nothing.jsonl"], "nothing.jsonl: there is no such file or folder"),
        (["--temperature", "-1"], "temperature is -1; it must be 0 or more"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0; it must be a number above 0"),
        (["--device", "abacus"], "--device abacus: not available here"),
    ],
)
def test_what_is_wrong_is_said_first(
    options: list[str], message: str, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", tiny.model_folder(), "--data", prompts, "--out", str(tmp_path / "a.jsonl")]
    capsys.readouterr()
    assert main([*given, *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "a.jsonl").exists()


def test_the_verifier_of_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same greedy answers of one letter, first to no one's satisfaction, then as if they were wanted."""
    out, greedy = tmp_path / "answers.jsonl", ["--temperature", "0", *SHORT, "--max-new-tokens", "1"]

    def verified(wanted: list[str], reward: str) -> list[tuple[str, float]]:
        rows = [{"question": p, "answer": a} for p, a in zip(tiny.PROMPTS, wanted, strict=True)]
        data = tiny.write_jsonl(tmp_path / "questions.jsonl", rows)
        out.unlink(missing_ok=True)
        given = ["evaluate", tiny.model_folder(), "--data", data, "--out", str(out), "--reward", reward]
        assert main([*given, *greedy]) == 0
        return [(row["response"].strip(), row["rewards"][reward]) for row in tiny.read_jsonl(out)]

    answers = [answer for answer, _ in verified(["none"] * 8, "exact:answer")]
    assert verified(["none"] * 8, "exact") == [(answer, 0.0) for answer in answers]
    wanted = [answer or "none" for answer in answers]
    assert verified(wanted, "exact:answer") == [(answer, float(answer != "")) for answer in answers]
    assert any(answers)
    data = str(tmp_path / "questions.jsonl")
    capsys.readouterr()
    assert main(["evaluate", tiny.model_folder(), "--data", data, "--reward", "exact:solution", *greedy]) == 2
    assert (
        "the records have no column 'solution' to compare with; they have answer" in capsys.readouterr().err
    )
