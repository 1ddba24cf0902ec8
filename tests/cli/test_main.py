"""The command line as a whole: commands, exit statuses, and what goes to which stream."""

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli import main
from trimtab.cli.main import COMMANDS
from trimtab.compare.config import CompareConfig
from trimtab.errors import UserError
from trimtab.methods import METHODS


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"trimtab {command} " in shown or f"trimtab {command}\n" in shown for command in COMMANDS)
    assert max(map(len, shown.splitlines())) < 100
    assert main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("trimtab")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["data", "shwo", "x"], "unknown command 'data shwo'; did you mean 'show'?"),
        (["methods", "dpo"], "`trimtab train dpo --help` shows that method"),
        (["methods", "dop"], "unknown method 'dop'; did you mean 'dpo'?"),
        (["compare"], "FILE is missing; see trimtab compare --help"),
        (["compare", "no.yaml"], "no.yaml: cannot be read (No such file or directory)"),
        (["report", "nowhere"], "nowhere/comparison.json is missing"),
        (
            ["train", "ppo", "--model", "m"],
            "--data and --reward and --out are missing; see trimtab train ppo",
        ),
        (["train", "grop"], "unknown method 'grop'; did you mean 'grpo'?"),
        (["evaluate", "m"], "--data is missing; see trimtab evaluate --help"),
        (["generate", "m", "--promt", "x"], "unknown option --promt; did you mean --prompt?"),
        (["generate", "m", "--prompt", "x", "--samples", "0"], "samples is 0; it must be a number above 0"),
        (["evaluate", "m", "--data", "x", "--most", "0"], "most is 0; it must be a number above 0"),
        (["data", "show"], "FILE is missing; see trimtab data show --help"),
    ],
)
def test_wrong_use_is_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.startswith("trimtab: ")
    assert printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize("words", [["compare"], ["evaluate"], ["generate"], ["report"], ["data", "show"]])
def test_every_command_has_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    printed = capsys.readouterr()
    assert not end.value.code and printed.err == ""
    assert f"usage: trimtab {' '.join(words)} " in printed.out


def test_options_of_a_comparison_win_over_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[CompareConfig] = []

    def stop(config: CompareConfig, out: Path, progress: Any) -> None:
        seen.append(config)
        raise UserError("enough")

    monkeypatch.setattr(import_module("trimtab.cli.compare"), "compare", stop)
    file = tmp_path / "c.yaml"
    file.write_text(
        "{model: m, data: d.jsonl, rewards: {gold: 'r.py:f'}, methods: {dpo: {}, ppo: {beta: 0.3}},"
        " online: {refreshes: 50, responses: 32}, budget: {steps: 40, responses: 16}}"
    )
    assert main(["compare", str(file), "--refreshes", "3", "--methods", "ppo", "grpo"]) == 2
    assert main(["compare", str(file), "--steps", "4"]) == 2
    first, second = seen
    assert (first.online.refreshes, first.online.responses, first.budget.steps) == (3, 32, 40)
    assert first.methods == {"ppo": {"beta": 0.3}, "grpo": {}}
    assert (second.online.refreshes, second.budget.steps, second.budget.responses) == (50, 4, 16)
    assert main(["compare", str(file), "--refreshes", "0"]) == 2
    assert capsys.readouterr().err.endswith("trimtab: refreshes is 0; it must be a number above 0\n")


def test_an_interruption_is_said_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("trimtab.cli.compare"), "run", interrupt)
    assert main(["compare", "c.yaml"]) == 130
    assert capsys.readouterr().err == "trimtab: interrupted; the same command goes on where it stopped\n"


def test_the_table_of_methods_holds_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(METHODS)
    (dpo,) = (line for line in lines if line.startswith("| dpo |"))
    assert dpo.startswith("| dpo | preference | A/B choices | reference | offline | Rafailov et al. 2023")
    (grpo,) = (line for line in lines if line.startswith("| grpo |"))
    assert "| reinforcement learning | prompts |" in grpo and "| online |" in grpo
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in METHODS) and "arXiv:2305.18290" in shown


@pytest.fixture
def trimtab() -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from trimtab.cli import main; raise SystemExit(main())", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)

    return call


def test_as_a_process(trimtab: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = trimtab("train", "dpo", "--model", "./nothing", "--data", "nothing.jsonl", "--out", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("trimtab: nothing.jsonl: there is no such file or folder")
    assert done.stderr.count("\n") == 1
