"""Whole comparisons: resumed, extended, interrupted, with runs that fail and workers that die."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_report import Page
from tests import tiny

from trimtab.compare.config import (
    Budget,
    CompareConfig,
    Evaluation,
    Online,
    RewardModelStage,
    Run,
    load_config,
)
from trimtab.compare.processes import rows
from trimtab.compare.report import write_report
from trimtab.compare.results import load_results
from trimtab.compare.run import compare
from trimtab.compare.worker import Cell, model_folder
from trimtab.errors import UserError
from trimtab.train import RunConfig

pytestmark = pytest.mark.slow

WORDS = ("film", "cast", "plot", "end", "music", "scene", "idea", "story")
PROMPTS = [f"the {a} of the {b} is" for a in WORDS for b in WORDS[:4]]
FAILED = "orpo/learning_rate=1e+30/seed=0"


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, what: str, done: int, total: int, note: str = "", *, milestone: bool = False) -> None:
        self.lines.append(f"{what} {done}/{total} {note}".strip())


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CompareConfig]:
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "r.py").write_text(
        "def joy(prompts, responses):\n    return [float(r.count('o')) for r in responses]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        yield CompareConfig(
            model=tiny.model_folder(),
            data=tiny.write_jsonl(folder / "pairs.jsonl", tiny.pairs(PROMPTS)),
            methods={
                "dpo": {"beta": [0.1, 1.0], "learning_rate": 1e-2},
                "orpo": {"learning_rate": 1e30},  # fails
                "kto": {"learning_rate": 1e-2},
                "grpo": {"learning_rate": 1e-2},
                "ppo": {"beta": 0.2, "learning_rate": 1e-2},
            },
            reward_model=RewardModelStage(run=RunConfig(steps=2)),
            rewards={"joy": f"{folder}/r.py:joy"},
            held_out=0.3,
            budget=Budget(steps=3, responses=8),
            online=Online(refreshes=2, responses=16),
            evaluation=Evaluation(prompts=6, max_new_tokens=8),
            jobs=2,
            precision="fp32",
        )


@pytest.fixture(scope="module")
def finished(settings: CompareConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished comparison, and what was said while it ran."""
    out, log = tmp_path_factory.mktemp("finished") / "out", Log()
    compare(settings, out, log)
    return out, log.lines


def answers(out: Path) -> dict[str, str]:
    return {file.parent.name: file.read_text() for file in out.glob("runs/*/evaluation.jsonl")}


def test_a_failed_run_is_shown_with_its_reason_and_the_others_go_on(
    finished: tuple[Path, list[str]],
) -> None:
    results = {result.key: result for result in load_results(finished[0])}
    assert set(results) == {
        "start/seed=0",
        "dpo/beta=0.1/learning_rate=0.01/seed=0",
        "dpo/beta=1.0/learning_rate=0.01/seed=0",
        FAILED,
        "kto/learning_rate=0.01/seed=0",
        "grpo/learning_rate=0.01/seed=0",
        "ppo/beta=0.2/learning_rate=0.01/seed=0",
    }
    assert [key for key, result in results.items() if result.status == "failed"] == [FAILED]
    assert "is not a finite number; try a smaller --learning-rate" in str(results[FAILED].error)
    page = write_report(finished[0]).read_text()
    assert "is not a finite number" in page and "kto" in page.lower()


def test_methods_that_answer_stand_beside_those_that_were_told(finished: tuple[Path, list[str]]) -> None:
    """The report has a row for each, with the KL on every other prompt: the rest chose DPO's beta."""
    page = Page(write_report(finished[0]))
    results = {r.method: r for r in load_results(finished[0]) if r.status == "done"}
    for method, name in (("kto", "KTO"), ("grpo", "GRPO"), ("ppo", "PPO")):
        folder = finished[0] / results[method].folder
        kls = [answer["kl"] for answer in tiny.read_jsonl(folder / "evaluation.jsonl")][1::2]
        assert max(map(abs, kls)) > 1e-3
        shown = page.row(name)[page.row("method").index("KL")]
        assert float(shown.split()[0].replace("−", "-")) == pytest.approx(sum(kls) / len(kls), abs=0.051)
    assert [m["step"] for m in tiny.read_jsonl(finished[0] / results["ppo"].folder / "metrics.jsonl")] == [
        1,
        2,
    ]
    about = json.loads((finished[0] / "comparison.json").read_text())
    assert (about["online"]["reward"], about["online"]["refreshes"]) == ("proxy", 2)


def test_every_finished_run_is_named_with_its_reward(finished: tuple[Path, list[str]]) -> None:
    lines = [line for line in finished[1] if line.startswith("runs ")]
    assert lines[0] == "runs 0/7" and len(lines) == 8
    assert any(line.startswith("runs 7/7 ") for line in lines)
    (failed,) = (line for line in lines if FAILED in line)
    assert f"{FAILED}: failed: step " in failed
    (start,) = (line for line in lines if "start/seed=0" in line)
    assert "start/seed=0: joy " in start


def test_only_the_best_model_is_kept(finished: tuple[Path, list[str]]) -> None:
    kept = [r for r in load_results(finished[0]) if model_folder(finished[0], r.folder).exists()]
    assert len(kept) == 1 and kept[0].method in ("dpo", "kto", "grpo", "ppo")


def test_a_finished_comparison_does_only_what_is_new(
    settings: CompareConfig, finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", Log()
    out.mkdir()
    subprocess.run(["cp", "-r", f"{finished[0]}/.", str(out)], check=True)
    before = (out / "results.jsonl").read_text()
    methods = {"dpo": settings.methods["dpo"], "ipo": {"learning_rate": 1e-2}}
    compare(dataclasses.replace(settings, methods=methods, jobs=1, keep="none"), out, log)
    after = (out / "results.jsonl").read_text()
    assert after.startswith(before)
    new = "ipo/learning_rate=0.01/seed=0"
    assert [row["key"] for row in tiny.read_jsonl(out / "results.jsonl")[7:]] == [new]
    assert [line.split(":")[0] for line in log.lines] == ["runs 3/4", f"runs 4/4 {new}"]
    assert not list(out.glob("runs/*/model"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "another"}, "model"),
        ({"budget": Budget(steps=4)}, "budget"),
        ({"lora_rank": 4}, "lora_rank"),
        ({"online": Online(refreshes=3, responses=16)}, "online"),
    ],
)
def test_another_comparison_is_refused_in_its_folder(
    settings: CompareConfig, finished: tuple[Path, list[str]], changes: dict[str, Any], named: str
) -> None:
    before = answers(finished[0])
    with pytest.raises(UserError, match=f"holds a comparison with another {named}"):
        compare(dataclasses.replace(settings, **changes), finished[0], Log())
    assert answers(finished[0]) == before


def test_killed_in_the_middle_it_goes_on_and_ends_the_same(
    settings: CompareConfig, finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Killed without a chance to clean up; the results are those of the comparison that ran in one go."""
    file, out = tmp_path / "c.yaml", tmp_path / "out"
    plain = dataclasses.asdict(dataclasses.replace(settings, jobs=1))
    file.write_text(yaml.safe_dump({k: v for k, v in plain.items() if v is not None}))
    command = [sys.executable, "-c", "from trimtab.cli import main; raise SystemExit(main())", "compare"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, str(file), "--out", str(out)], stdout=log, stderr=log)
        wait_for(lambda: len(lines(out)) >= 2, process)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert workers
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    before, stages = lines(out), (out / "stages.json").read_text()
    assert 2 <= len(before) < 7
    compare(load_config(file), out, Log())
    after = lines(out)
    assert after[: len(before)] == before and len(after) == 7
    assert (out / "stages.json").read_text() == stages
    assert answers(out) == answers(finished[0])


def lines(out: Path) -> list[str]:
    file = out / "results.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def wait_for(holds: Any, process: subprocess.Popen[bytes] | None = None, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "nothing happened in time"
        assert process is None or process.poll() is None, "it ended by itself"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Lethal(Run):
    """A run whose process is killed, as the system does when memory runs out."""

    @property
    def folder(self) -> str:
        if multiprocessing.parent_process() is not None:
            time.sleep(1.0)  # for the other one to begin
            os.kill(os.getpid(), signal.SIGKILL)
        return "runs/lethal"


class Harmless(Run):
    """A run that takes longer than the lethal one lives; then it finds no model to start from."""

    @property
    def folder(self) -> str:
        if multiprocessing.parent_process() is not None:
            time.sleep(2.0)
        return "runs/harmless"


def test_a_killed_worker_fails_its_own_run_only(settings: CompareConfig, tmp_path: Path) -> None:
    kinds = (Lethal, Harmless)
    cells = [Cell(settings, kind(kind.__name__, {}, None, seed=0), tmp_path, 1) for kind in kinds]
    reasons = {row["method"]: row["error"] for row in rows(cells, 2)}
    assert reasons["Lethal"] == "its process was killed, most likely for want of memory; try fewer --jobs"
    assert "/base: no such folder" in reasons["Harmless"]
