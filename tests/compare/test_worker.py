"""One run of a comparison: what it writes, what it measures, and that a seed repeats."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from transformers import AutoModelForCausalLM

from trimtab.compare.config import Budget, CompareConfig, Evaluation, Online, Run, grid
from trimtab.compare.stages import Stages
from trimtab.compare.summary import START
from trimtab.compare.worker import Cell, model_folder, run_cell, summarise
from trimtab.errors import UserError
from trimtab.evaluate import Answer
from trimtab.feedback.readers import read

WORDS = ("film", "cast", "plot", "end", "music", "scene", "idea", "story")
PROMPTS = [f"the {a} of the {b} is" for a in WORDS for b in WORDS[:4]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompareConfig, Path]:
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "r.py").write_text(
        "def joy(prompts, responses):\n    return [float(r.count('o')) for r in responses]\n"
    )
    settings = CompareConfig(
        model=tiny.model_folder(),
        data=tiny.write_jsonl(folder / "pairs.jsonl", tiny.pairs(PROMPTS)),
        methods={
            "dpo": {"beta": 0.2, "learning_rate": 1e-3},
            "kto": {"learning_rate": 1e30},
            "ppo": {"learning_rate": 1e-2},
            "rloo": {"beta": 0.0, "learning_rate": 1e-2},
        },
        rewards={"joy": f"{folder}/r.py:joy"},
        held_out=0.3,
        budget=Budget(steps=3, responses=8),
        online=Online(refreshes=2, responses=12, minibatch=6),
        evaluation=Evaluation(prompts=6, max_new_tokens=8),
        keep="all",
        precision="fp32",
    )
    out = folder / "out"
    out.mkdir()
    Stages(settings, out, lambda *_, **__: None).run()
    return settings, out


def cell(config: tuple[CompareConfig, Path], run: Run | None = None, **changes: Any) -> Cell:
    settings, out = config
    run = run or grid(settings)[0]
    return Cell(dataclasses.replace(settings, **changes), run, out, threads=1)


def test_a_run_writes_its_answers_curve_and_model(config: tuple[CompareConfig, Path]) -> None:
    row = run_cell(cell(config))
    folder = config[1] / row["folder"]
    answers = tiny.read_jsonl(folder / "evaluation.jsonl")
    assert [a["prompt"] for a in answers] == [
        r["prompt"] for r in tiny.read_jsonl(config[1] / "prompts.jsonl")
    ]
    assert [a["rewards"]["joy"] for a in answers] == [a["response"].count("o") for a in answers]
    assert [m["step"] for m in tiny.read_jsonl(folder / "metrics.jsonl")] == [1, 2, 3]
    assert (row["key"], row["status"], row["seed"]) == ("dpo/beta=0.2/learning_rate=0.001/seed=0", "done", 0)
    assert row["strength"] == {"name": "beta", "value": 0.2}
    assert row["config"]["run"]["batch_size"] == 4  # 8 responses are 4 pairs
    assert row["config"]["run"]["learning_rate"] == 1e-3
    mean = sum(a["rewards"]["joy"] for a in answers) / len(answers)
    assert row["metrics"]["joy"]["mean"] == pytest.approx(mean)
    assert row["metrics"]["kl"]["mean"] == pytest.approx(sum(a["kl"] for a in answers) / len(answers))
    AutoModelForCausalLM.from_pretrained(model_folder(config[1], row["folder"]))


def test_the_start_is_measured_and_not_trained(config: tuple[CompareConfig, Path]) -> None:
    row = run_cell(cell(config, Run(START, {}, None, seed=0)))
    assert row["metrics"]["kl"] == {"mean": 0.0, "se": 0.0}
    assert row["config"] == {} and row["strength"] is None
    assert not (config[1] / row["folder"] / "metrics.jsonl").exists()
    assert not model_folder(config[1], row["folder"]).exists()


@pytest.mark.parametrize(("number", "rank"), [(0, 0), (0, 2), (2, 0), (2, 2)])
def test_a_seed_repeats_to_the_last_letter(
    config: tuple[CompareConfig, Path], number: int, rank: int
) -> None:
    first = grid(config[0])[number]
    other = dataclasses.replace(first, seed=1)
    folder = config[1] / first.folder

    def answers(run: Run) -> str:
        run_cell(cell(config, run, lora_rank=rank))
        return (config[1] / run.folder / "evaluation.jsonl").read_text()

    one, two = answers(first), answers(other)
    assert answers(first) == one != two
    assert (folder / "model" / "adapter_config.json").exists() == (rank > 0)


@pytest.mark.parametrize("number", [2, 3])
def test_an_online_run_answers_the_prompts_of_the_feedback(
    config: tuple[CompareConfig, Path], number: int
) -> None:
    """12 answers a refresh are 3 prompts with 4 each; PPO makes 4 epochs of 2 minibatches of them."""
    row = run_cell(cell(config, grid(config[0])[number]))
    folder = config[1] / row["folder"]
    curve = tiny.read_jsonl(folder / "metrics.jsonl")
    assert [(m["step"], m["refresh"]) for m in curve] == [(1, 1), (2, 2)]
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the starting model
    assert all(m["tokens"] == pytest.approx(12 * m["length"]) for m in curve)
    assert row["config"]["run"]["refreshes"] == 2 and row["config"]["run"]["minibatch_size"] == 6
    assert row["config"]["run"]["learning_rate"] == 1e-2
    assert row["strength"]["name"] == "beta"
    assert row["metrics"]["kl"]["mean"] != 0 and "joy" in row["metrics"]
    AutoModelForCausalLM.from_pretrained(model_folder(config[1], row["folder"]))


def test_the_reward_that_is_learned_from_is_the_one_that_is_named(
    config: tuple[CompareConfig, Path], tmp_path: Path
) -> None:
    (tmp_path / "seen.py").write_text(
        "from pathlib import Path\n"
        "def brief(prompts, responses):\n"
        "    with Path(__file__).with_suffix('.txt').open('a') as file:\n"
        "        file.writelines(f'{prompt}\\n' for prompt in prompts)\n"
        "    return [-float(len(r)) for r in responses]\n"
    )
    rewards = {**config[0].rewards, "brief": f"{tmp_path}/seen.py:brief"}
    online = dataclasses.replace(config[0].online, reward="brief")
    run = dataclasses.replace(grid(config[0])[3], seed=5)
    row = run_cell(cell(config, run, rewards=rewards, online=online))
    asked = (tmp_path / "seen.txt").read_text().splitlines()
    training = {record.prompt for record in read(str(config[1] / "feedback.jsonl"))}
    assert len(asked) == 2 * 12 + 6 and set(asked[:24]) <= training
    assert not set(asked[24:]) & training  # the evaluation's
    scores = [m["score"] for m in tiny.read_jsonl(config[1] / row["folder"] / "metrics.jsonl")]
    assert all(-8 <= score < -1 for score in scores)


def test_questions_are_answered_and_verified(config: tuple[CompareConfig, Path], tmp_path: Path) -> None:
    rows = [{"question": prompt, "answer": "o"} for prompt in PROMPTS]
    settings = dataclasses.replace(
        config[0],
        data=tiny.write_jsonl(tmp_path / "questions.jsonl", rows),
        methods={"rloo": {"beta": 0.0, "learning_rate": 1e-2}},
        rewards={"right": "exact:answer"},
        online=Online(refreshes=12, responses=64),
        evaluation=Evaluation(prompts=6, max_new_tokens=1),
    )
    out = tmp_path / "out"
    out.mkdir()
    Stages(settings, out, lambda *_, **__: None).run()
    row = run_cell(Cell(settings, grid(settings)[0], out, threads=1))
    answers = tiny.read_jsonl(out / row["folder"] / "evaluation.jsonl")
    assert [a["rewards"]["right"] for a in answers] == [float(a["response"].strip() == "o") for a in answers]
    assert row["metrics"]["right"]["mean"] > 0.5  # a letter of 40 at first


def test_models_are_not_written_where_none_is_kept(config: tuple[CompareConfig, Path]) -> None:
    run = dataclasses.replace(grid(config[0])[0], seed=77)
    run_cell(cell(config, run, keep="none"))
    assert not model_folder(config[1], run.folder).exists()


def test_a_loss_that_is_no_number_is_said_so(config: tuple[CompareConfig, Path]) -> None:
    with pytest.raises(UserError, match="is not a finite number; try a smaller --learning-rate"):
        run_cell(cell(config, grid(config[0])[1]))


def test_averages_of_answers() -> None:
    answers = [
        Answer("p", "a b a b", {"r": 1.0}, 0.5, 4, True),
        Answer("q", "c d", {"r": 3.0}, 1.5, 2, False),
    ]
    metrics = summarise(answers)
    assert metrics["r"]["mean"] == 2.0 and metrics["length"]["mean"] == 3.0
    assert metrics["kl"] == {"mean": 1.0, "se": pytest.approx(0.5)}  # sd 0.7071 over sqrt(2)
    assert metrics["ended"] == 0.5
    assert "kl" not in summarise([dataclasses.replace(a, kl=None) for a in answers])
