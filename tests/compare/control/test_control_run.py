"""Whole comparisons in an environment: trained, failed, resumed, extended, refused; and the command line."""

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up import Page

from trimtab.cli import main
from trimtab.compare.control.config import ControlCompareConfig, Evaluation
from trimtab.compare.control.report import write_control_report
from trimtab.compare.control.run import compare_control
from trimtab.compare.results import load_results
from trimtab.errors import UserError
from trimtab.play import load_run, play

SETTINGS = ControlCompareConfig(
    envs=["CartPole-v1"],
    methods={"ppo": {"clip": [0.2, 1000]}, "a2c": {"learning_rate": 1e30}},
    settings={"total_steps": 600, "hidden": [16]},
    seeds=[0, 1],
    evaluation=Evaluation(episodes=4),
    jobs=1,
)
PPO = "CartPole-v1/ppo/clip=0.2/seed="


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, what: str, done: int, total: int, note: str = "", *, milestone: bool = False) -> None:
        self.lines.append(f"{what} {done}/{total} {note}".strip())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished comparison, and what was said while it ran."""
    out, log = tmp_path_factory.mktemp("control") / "out", Log()
    compare_control(SETTINGS, out, log)
    return out, log.lines


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_run_has_its_line_and_a_failed_one_its_reason(finished: tuple[Path, list[str]]) -> None:
    out, said = finished
    results = {result.key: result for result in load_results(out)}
    assert list(results) == [
        f"CartPole-v1/{cell}/seed={seed}"
        for seed in (0, 1)
        for cell in ("start", "ppo/clip=0.2", "ppo/clip=1000", "a2c/learning_rate=1e+30")
    ]
    failed = [key for key, result in results.items() if result.status == "failed"]
    assert failed == [f"CartPole-v1/a2c/learning_rate=1e+30/seed={seed}" for seed in (0, 1)]
    assert all("is not a finite number" in str(results[key].error) for key in failed)
    assert said[0] == "runs 0/8" and said[-1].startswith("runs 8/8 CartPole-v1/a2c/")
    assert f"runs 4/8 {failed[0]}: failed: {results[failed[0]].error}" in said


def test_a_run_leaves_its_curve_and_a_policy_that_plays_as_it_did(finished: tuple[Path, list[str]]) -> None:
    out, _ = finished
    result = next(result for result in load_results(out) if result.key == f"{PPO}1")
    folder = out / result.folder
    assert folder == out / "runs/CartPole-v1-ppo-clip=0.2-seed=1"
    options = yaml.safe_load((folder / "trimtab.yaml").read_text())
    assert (options["clip"], options["hidden"], options["seed"]) == (0.2, [16], 1)
    assert (options["steps"], options["learning_rate"]) == (32, 1e-3)  # of the preset
    curve = lines(folder / "metrics.jsonl")
    assert curve[-2]["total_steps"] < 600 <= curve[-1]["total_steps"] == result.metrics["total_steps"]
    returns = json.loads((folder / "evaluation.json").read_text())
    policy, spaces, env = load_run(folder)
    assert returns["deterministic"] == play(policy, spaces, env, 4, seed=1)
    assert returns["drawn"] == play(policy, spaces, env, 4, seed=1, deterministic=False)
    assert result.metrics["deterministic"] == pytest.approx(sum(returns["deterministic"]) / 4)


def test_an_untrained_policy_draws_its_actions_almost_evenly(finished: tuple[Path, list[str]]) -> None:
    """A random policy keeps CartPole's pole up for 22 steps on average; the best for 500."""
    starts = [r.metrics["drawn"] for r in load_results(finished[0]) if r.method == "start"]
    assert len(starts) == 2 and all(10 < value < 50 for value in starts)


def test_the_report_holds_what_was_trained(finished: tuple[Path, list[str]]) -> None:
    page = Page(write_control_report(finished[0]))
    assert "2 of 8 runs failed and are listed below with the reason" in page.text
    assert "from 2 seeds only" in page.text
    means = [r.metrics["deterministic"] for r in load_results(finished[0]) if r.key.startswith(PPO)]
    row = next(row for row in page.rows if row[0].startswith("ppo") and "clip 0.2" in row[0])
    assert float(row[3]) == pytest.approx(sum(means) / 2, abs=0.06)
    assert len(page.images()) == 2
    assert "hidden: - 16" in page.text and "trimtab play FOLDER/runs/CartPole-v1-ppo-" in page.text


def test_an_interrupted_comparison_does_what_is_missing_and_ends_the_same(
    finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """The last lines are lost, one of them torn, and a run's folder is half written."""
    out, log = tmp_path / "out", Log()
    shutil.copytree(finished[0], out)
    whole = (out / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").write_text("\n".join(whole[:5]) + "\n" + whole[5][:40])
    torn = out / "runs/CartPole-v1-ppo-clip=0.2-seed=1"
    (torn / "policy.safetensors").unlink()
    (torn / "rubbish").write_text("")
    compare_control(SETTINGS, out, log)
    assert [line.split(" ")[1] for line in log.lines] == ["4/8", "5/8", "6/8", "7/8", "8/8"]
    assert not (torn / "rubbish").exists()
    assert {r.key: r.metrics for r in load_results(out)} == {
        r.key: r.metrics for r in load_results(finished[0])
    }


def test_only_what_is_new_is_run(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    out, log = tmp_path / "out", Log()
    shutil.copytree(finished[0], out)
    methods = {"ppo": {"clip": 0.2}, "reinforce": None}
    more = ControlCompareConfig(**{**vars(SETTINGS), "methods": methods, "name": "more", "seeds": [1]})
    compare_control(more, out, log)
    assert [line.partition(":")[0] for line in log.lines] == [
        "runs 2/3",
        "runs 3/3 CartPole-v1/reinforce/seed=1",
    ]
    assert len(lines(out / "results.jsonl")) == 9


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"settings": {"total_steps": 601}}, "settings"), ({"evaluation": Evaluation(9)}, "evaluation")],
)
def test_another_comparison_is_refused_in_its_folder(
    finished: tuple[Path, list[str]], changes: dict[str, Any], named: str
) -> None:
    before = (finished[0] / "results.jsonl").read_bytes()
    with pytest.raises(UserError, match=f"holds a comparison with another {named}; choose another --out"):
        compare_control(ControlCompareConfig(**{**vars(SETTINGS), **changes}), finished[0], Log())
    assert (finished[0] / "results.jsonl").read_bytes() == before


def test_a_run_with_other_options_is_refused(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    """As after a preset changed: the finished run would not be what it is."""
    (tmp_path / "results.jsonl").write_text(
        (finished[0] / "results.jsonl").read_text().replace('"gamma": 0.98', '"gamma": 0.97')
    )
    with pytest.raises(UserError, match=f"the run {PPO}0 was made with another gamma; choose another --out"):
        compare_control(SETTINGS, tmp_path, Log())


FILE = """
envs: [CartPole-v1]
methods: {ppo: {total_steps: 9, clip: 0.1}, trpo: , a2c: }
settings: {gamma: 0.5}
"""


def test_options_of_the_command_line_win_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[ControlCompareConfig] = []

    def stop(config: ControlCompareConfig, out: Path, progress: Any) -> None:
        assert out == tmp_path / "there"
        seen.append(config)
        raise UserError("enough")

    monkeypatch.setattr(import_module("trimtab.compare.control.run"), "compare_control", stop)
    file = tmp_path / "c.yaml"
    file.write_text(FILE)
    words = ["compare", str(file), "--out", str(tmp_path / "there")]
    assert main([*words, "--methods", "ppo", "ppo_kl", "--seeds", "4", "5", "--jobs", "3"]) == 2
    assert main([*words, "--total-steps", "77"]) == 2
    first, second = seen
    assert first.methods == {"ppo": {"total_steps": 9, "clip": 0.1}, "ppo_kl": {}}
    assert (first.seeds, first.jobs, first.settings) == ([4, 5], 3, {"gamma": 0.5})
    assert (second.seeds, second.settings) == ([0], {"gamma": 0.5, "total_steps": 77})
    assert second.methods == {"ppo": {"clip": 0.1}, "trpo": {}, "a2c": {}}
    assert capsys.readouterr().err == "trimtab: enough\n" * 2


@pytest.mark.parametrize("option", ["--refreshes", "--prompts", "--steps"])
def test_options_for_feedback_are_refused_in_environments(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(FILE)
    assert main(["compare", str(file), option, "3"]) == 2
    sentence = f"trimtab: {option}: {file} compares methods in environments; take --total-steps\n"
    assert capsys.readouterr().err == sentence


def test_total_steps_are_refused_for_feedback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("{model: m, data: d.jsonl, rewards: {gold: 'r.py:f'}, methods: {dpo: }}")
    assert main(["compare", str(file), "--total-steps", "3"]) == 2
    sentence = "compares methods on feedback; take --steps for those that learn from recorded feedback"
    assert (
        capsys.readouterr().err == f"trimtab: --total-steps: {file} {sentence}, --refreshes for the others\n"
    )


def test_report_writes_the_page_of_a_comparison_in_environments(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (finished[0] / "report.html").unlink(missing_ok=True)
    assert main(["report", str(finished[0])]) == 0
    printed = capsys.readouterr().out
    assert "untrained" in printed and "ppo (clip 1000)" in printed
    assert "CartPole-v1" in (finished[0] / "report.html").read_text()
