"""What happens once before the runs: on which prompts, in which files, and never twice."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests import tiny

from trimtab.compare.config import CollectStage, CompareConfig, Evaluation, RewardModelStage, SFTStage
from trimtab.compare.stages import Stages, rank
from trimtab.errors import UserError
from trimtab.feedback.readers import read
from trimtab.feedback.records import Record
from trimtab.train import RunConfig

WORDS = ("film", "cast", "plot", "end", "music", "scene", "idea", "story", "tale", "voice", "score", "joke")
PROMPTS = [f"the {a} of the {b} is" for a in WORDS for b in WORDS[:4]]
RUN = RunConfig(steps=2, batch_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "r.py").write_text(
        "def joy(prompts, responses):\n    return [float(r.count('o')) for r in responses]\n"
    )
    tiny.write_jsonl(tmp_path / "thumbs.jsonl", tiny.thumbs(PROMPTS))
    tiny.write_jsonl(tmp_path / "shown.jsonl", tiny.demonstrations())
    return tmp_path


def config(folder: Path, **changes: Any) -> CompareConfig:
    values: dict[str, Any] = {
        "model": tiny.model_folder(),
        "data": str(folder / "thumbs.jsonl"),
        "methods": {"dpo": {}},
        "rewards": {"joy": f"{folder}/r.py:joy"},
        "held_out": 0.3,
        "evaluation": Evaluation(prompts=10, max_new_tokens=6, batch_size=4),
        "precision": "fp32",
    }
    return CompareConfig(**{**values, **changes})


def run(folder: Path, settings: CompareConfig) -> tuple[list[dict[str, Any]], list[str]]:
    """The stages, and the names of those that reported progress."""
    out, seen = folder / "out", []
    out.mkdir(exist_ok=True)
    stages = Stages(settings, out, lambda what, *_, **__: seen.append(what)).run()
    return stages, list(dict.fromkeys(seen))


def prompts(file: Path) -> set[Any]:
    return {record.prompt for record in read(str(file))}


def test_evaluation_prompts_are_in_no_training_file(folder: Path) -> None:
    stages, _ = run(folder, config(folder))
    out = folder / "out"
    assert [stage["name"] for stage in stages] == ["fine-tuning", "feedback"]
    assert not prompts(out / "feedback.jsonl") & prompts(out / "held_out.jsonl")
    assert prompts(out / "prompts.jsonl") < prompts(out / "held_out.jsonl")
    assert len(prompts(out / "prompts.jsonl")) == 10
    assert prompts(out / "feedback.jsonl") | prompts(out / "held_out.jsonl") == set(PROMPTS)
    assert {record.kind for record in read(str(out / "feedback.jsonl"))} == {"thumbs"}


def test_without_fine_tuning_the_base_is_the_model(folder: Path) -> None:
    run(folder, config(folder))
    base = load_file(folder / "out" / "base" / "model.safetensors")
    model = load_file(Path(tiny.model_folder()) / "model.safetensors")
    assert all((base[name] == model[name]).all() for name in model)


def test_all_stages_with_collected_feedback(folder: Path) -> None:
    settings = config(
        folder,
        sft=SFTStage(str(folder / "shown.jsonl"), RUN),
        collect=CollectStage(f"{folder}/r.py:joy", prompts=12, held_out_prompts=5, samples=3),
        reward_model=RewardModelStage("reward_ranking", RUN),
        seeds=[4, 9],
    )
    stages, seen = run(folder, settings)
    out = folder / "out"
    assert [stage["name"] for stage in stages] == ["fine-tuning", "feedback", "reward model"]
    assert seen == [
        "fine-tuning",
        "answering",
        "answering held-out prompts",
        "reward model (seed 4)",
        "reward model (seed 9)",
    ]
    rankings = read(str(out / "feedback.jsonl"))
    assert {r.kind for r in rankings} == {"ranking"} and len(rankings) <= 12
    for record in rankings:
        counts = [response.count("o") for response in record.responses]
        assert counts == sorted(counts, reverse=True)
        assert list(record.ranks) == [sorted(set(counts), reverse=True).index(c) for c in counts]
    assert not prompts(out / "feedback.jsonl") & prompts(out / "held_out.jsonl")
    assert not prompts(out / "feedback.jsonl") & prompts(out / "prompts.jsonl")
    accuracy = stages[2]["metrics"]["held_out_pair_accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["mean"] <= accuracy["high"] <= 1
    assert stages[2]["metrics"]["seeds"] == 2
    assert (out / "reward_model" / "model.safetensors").exists()


def test_what_is_finished_is_not_repeated(folder: Path) -> None:
    settings = config(
        folder, sft=SFTStage(str(folder / "shown.jsonl"), RUN), reward_model=RewardModelStage(run=RUN)
    )
    first, _ = run(folder, settings)
    (folder / "thumbs.jsonl").unlink()  # not even read again
    again, seen = run(folder, settings)
    assert again == first and seen == []


def test_the_same_seed_gives_the_same_reward_model(folder: Path) -> None:
    settings = config(folder, reward_model=RewardModelStage(run=RUN))
    one, two = dataclasses.replace(settings), dataclasses.replace(settings)
    first, _ = run(folder, one)
    weights = load_file(folder / "out" / "reward_model" / "model.safetensors")
    (folder / "out").rename(folder / "before")
    second, _ = run(folder, two)
    again = load_file(folder / "out" / "reward_model" / "model.safetensors")
    assert all((weights[name] == again[name]).all() for name in weights)
    assert first[2]["metrics"] == second[2]["metrics"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nothing.jsonl"}, "nothing.jsonl: there is no such file"),
        ({"data": "bad.jsonl"}, r"bad\.jsonl:2: "),
        ({"data": "shown.jsonl"}, "which cannot become pair: it shows a good response"),
        ({"rewards": {"joy": "r.py:joi"}}, "has no function 'joi'; did you mean 'joy'?"),
        ({"held_out": 0.0}, "cannot be split with 0% of the prompts held out"),
        ({"sft": SFTStage("nothing.jsonl")}, "nothing.jsonl: there is no such file"),
    ],
)
def test_all_input_is_read_before_anything_is_trained(
    folder: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": 1}\n')
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message):
        run(folder, config(folder, **changes))
    assert not list((folder / "out").iterdir())


def test_ranks_tie_where_scores_do_and_single_answers_are_left_out() -> None:
    answers = [["a", "bb", "a", "cc"], ["a", "a"], ["", "ddd", "e"]]

    def length(prompts: Any, responses: Sequence[str], columns: Any = None) -> list[float]:
        return [float(len(r)) for r in responses]

    asked = [Record("prompt", prompt) for prompt in ("p", "q", "r")]
    ranked = rank(asked, answers, length)
    assert [(r.prompt, r.responses, r.ranks) for r in ranked] == [
        ("p", ("bb", "cc", "a"), (0, 0, 1)),
        ("r", ("ddd", "e"), (0, 1)),
    ]
    assert [r.kind for r in ranked] == ["ranking"] * 2
    with pytest.raises(UserError, match="nothing to rank"):
        rank(asked[1:2], answers[1:2], length)


def test_a_reward_that_ranks_sees_each_answers_column_and_the_rankings_keep_it() -> None:
    def closeness(prompts: Any, responses: Sequence[str], columns: Any = None) -> list[float]:
        return [-abs(len(r) - length) for r, length in zip(responses, columns["length"], strict=True)]

    asked = [Record("prompt", "p", columns={"length": 1}), Record("prompt", "q", columns={"length": 3})]
    ranked = rank(asked, [["bbb", "a"], ["c", "ddd", "ee"]], closeness)
    assert [(r.responses, r.columns) for r in ranked] == [
        (("a", "bbb"), {"length": 1}),
        (("ddd", "ee", "c"), {"length": 3}),
    ]


def test_questions_keep_their_answers_for_the_evaluation(folder: Path) -> None:
    rows = [{"question": prompt, "answer": f"{n}"} for n, prompt in enumerate(PROMPTS)]
    data = tiny.write_jsonl(folder / "questions.jsonl", rows)
    run(folder, config(folder, data=data, methods={"rloo": {}}, rewards={"right": "exact:answer"}))
    evaluated = read(str(folder / "out" / "prompts.jsonl"))
    assert {record.kind for record in evaluated} == {"prompt"} and len(evaluated) == 10
    for record in evaluated:
        assert not isinstance(record.prompt, str)
        assert record.columns["answer"] == str(PROMPTS.index(record.prompt[0].content))
