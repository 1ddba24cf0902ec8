"""`trimtab doctor` as a user runs it: what it prints, its exit status, its JSON."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.models import letter_tokenizer
from trimtab.cli import main
from trimtab.doctor import run as doctor
from trimtab.doctor.findings import Finding
from trimtab.doctor.run import GROUPS, verdict
from trimtab.policies.load import ModelConfig, load_language_policy

QUICK = ["--only", "data", "tokens"]
WORDS = (
    "a calm sea",
    "some iron rusts",
    "we sing and boil",
    "bees dance far",
    "bread is risen",
    "an echo comes",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sound() -> list[tiny.Row]:
    return [
        {"prompt": f"the {noun} is", "chosen": f" {good}.", "rejected": f" {good[::-1]} no."}
        for noun, good in zip(tiny.NOUNS, WORDS, strict=False)
    ]


def words(rows: list[tiny.Row], *options: str) -> list[str]:
    tiny.write_jsonl(Path("f.jsonl"), rows)
    return ["doctor", "--model", tiny.model_folder(), "--data", "f.jsonl", *QUICK, *options]


def printed(given: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()  # making the model said something
    status = main(given)
    out = capsys.readouterr()
    assert out.err == ""
    return status, out.out


def test_sound_data_is_ok(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = printed(words(sound(), "--method", "dpo"), capsys)
    assert status == 0
    assert out.splitlines()[0].split() == ["data"]
    last = out.strip().splitlines()[-1]
    assert last.endswith("skipped") and " checks are ok" in last
    assert max(map(len, out.splitlines())) <= 100


def test_a_warning_names_its_rows_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = printed(words([*sound(), sound()[0]]), capsys)
    assert status == 1
    flat = " ".join(out.split())
    assert "warning duplicates 1 of 7 rows say the same as an earlier row line 7 → delete them" in flat
    assert "1 warning: duplicates; " in flat


def test_an_error_wins_over_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = printed(
        words([*sound(), sound()[0], {"prompt": "p", "chosen": "", "rejected": "no"}]), capsys
    )
    assert status == 2
    assert "1 error: empty responses; 1 warning: duplicates; " in " ".join(out.split())


def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = printed(words([*sound(), sound()[0]], "--json"), capsys)
    whole = json.loads(out)
    assert sorted(whole) == ["findings", "status", "verdict"] and whole["status"] == status == 1
    (duplicate,) = (row for row in whole["findings"] if row["check"] == "duplicates")
    assert duplicate == {
        "group": "data",
        "check": "duplicates",
        "level": "warning",
        "said": "1 of 7 rows say the same as an earlier row",
        "advice": "delete them; a row that comes twice counts twice",
        "places": ["f.jsonl:7"],
        "values": {"rows": 1, "of": 7},
    }


def test_options_of_the_method_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row | {"label": number < 4} for number, row in enumerate(tiny.demonstrations())]
    rows += [{"prompt": "the sea is", "completion": f" {text}.", "label": False} for text in WORDS]
    given = words(rows, "--method", "kto", "--json")

    def advice(*options: str) -> str:
        _, out = printed([*given, *options], capsys)
        (balance,) = (row for row in json.loads(out)["findings"] if row["check"] == "balance of thumbs")
        return str(balance["advice"])

    assert "--desirable-weight 2.92 (from 2.5 to 3.33)" in advice()  # 4 ups and 10 downs
    assert advice("--desirable-weight", "3") == ""
    assert main(["doctor", "--method", "kto", "--model", "m", "--data", "d", "--desirable-wieght", "3"]) == 2
    assert "unknown option --desirable-wieght; did you mean --desirable-weight?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["doctor"], "--model and --data are missing; see trimtab doctor --help"),
        (["doctor", "--method", "dop"], "unknown method 'dop'; did you mean 'dpo'?"),
        (["doctor", "--modle", "m"], "unknown option --modle; did you mean --model?"),
        (["doctor", "--model", "./no", "--data", "f.jsonl"], "trimtab: ./no: no "),
        (["doctor", "--model", "reviews", "--data", "no.jsonl"], "no.jsonl: there is no such file or folder"),
        (["doctor", "--model", "m", "--data", "d", "--only", "dta"], "invalid choice 'dta'"),
    ],
)
def test_wrong_use_is_one_sentence(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == 2
    out = capsys.readouterr()
    assert message in out.err and out.err.count("\n") == 1 and out.out == ""


def test_the_help_explains_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--held-out" in shown and "Groups of checks: data, tokens, numerics, fit" in shown


def test_the_held_out_file_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_jsonl(Path("held.jsonl"), [{"prompt": "The CAST is"}])
    status, out = printed(words(sound(), "--held-out", "held.jsonl"), capsys)
    assert status == 2 and "1 error: held-out prompts" in " ".join(out.split())


def test_all_groups_are_looked_at_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(group: str) -> Any:
        return lambda *_: [Finding(group, f"the {group}", "ok", "it is fine")]

    for group in GROUPS:
        monkeypatch.setattr(doctor, f"_{group}", one(group))
    given = [word for word in words(sound(), "--method", "dpo") if word not in QUICK]
    _, out = printed([*given, "--json"], capsys)
    assert [row["group"] for row in json.loads(out)["findings"]] == list(GROUPS)
    # with feedback that the method cannot take, what needs it is skipped
    refused = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in sound()]
    tiny.write_jsonl(Path("f.jsonl"), refused)
    _, out = printed([*given, "--json"], capsys)
    levels = {row["group"]: row["level"] for row in json.loads(out)["findings"]}
    assert levels == {"data": "ok", "tokens": "ok", "numerics": "skipped", "fit": "skipped"}


def test_the_verdict_counts() -> None:
    levels: Any = ["ok", "error", "warning", "error", "skipped", "ok"]
    findings = [Finding("data", f"c{n}", level, "") for n, level in enumerate(levels)]
    assert verdict(findings) == "2 errors: c1, c3; 1 warning: c2; 2 checks are ok, 1 skipped"
    assert verdict(findings[:1]) == "1 check is ok"


def test_ends_named_in_the_models_configuration_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """config.json of a model without generation_config.json may list several end tokens."""
    template = tiny.CHAT_TEMPLATE.replace("{{ m.content }}", "{{ m.content }}<end>")

    def level(*ends: int) -> str:
        folder = tmp_path / f"ends-{len(ends)}"
        shutil.copytree(tiny.model_folder(), folder)
        (folder / "generation_config.json").unlink()
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": list(ends)}))
        assert load_language_policy(ModelConfig(str(folder))).end_tokens == set(ends)  # as sampling has it
        tokenizer = letter_tokenizer(additional_special_tokens=["<end>"])
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        rows = [{"prompt": [{"role": "user", "content": "hi"}], "completion": text} for text in WORDS]
        tiny.write_jsonl(Path("talk.jsonl"), rows)
        given = ["doctor", "--model", str(folder), "--data", "talk.jsonl", "--only", "tokens", "--json"]
        _, out = printed(given, capsys)
        return next(row["level"] for row in json.loads(out)["findings"] if row["check"] == "end of responses")

    assert level(1) == "error"
    assert level(1, 3) == "ok"
