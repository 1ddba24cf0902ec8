"""Every check on the data finds the fault that is planted for it, names its row, and passes sound data."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests import tiny

from trimtab.doctor.data import data_findings, disorder
from trimtab.doctor.findings import Finding
from trimtab.doctor.material import gather
from trimtab.feedback.conversions import ViewOptions
from trimtab.feedback.records import Message
from trimtab.methods import METHODS

Row = dict[str, Any]

ANSWERS = (
    "The tide turns twice a day, since the moon pulls at the sea.",
    "Rust is iron that has met water and air for long enough.",
    "A kettle sings before it boils: small bubbles burst on their way up.",
    "Bees dance to tell where the flowers are and how far.",
    "Bread rises because yeast breathes out into the dough.",
    "An echo is sound that comes back from a wall.",
    "Ice floats, since water takes more room when it freezes.",
    "Leaves are green because they leave that colour unused.",
)
WORSE = (
    "I do not know what you mean by that question, sorry.",
    "Nobody has ever found out, and I will not try either today.",
    "It simply is so.",
    "Ask somebody else about insects, perhaps at the university in town.",
    "Flour, salt, water.",
    "This happens in the mountains on most days of the year, mostly at noon.",
    "Cold things do that.",
    "Plants have always been so, and painters like them for it very much indeed.",
)
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def pairs() -> list[Row]:
    return [
        {"prompt": f"{noun}?", "chosen": good, "rejected": bad}
        for noun, good, bad in zip(tiny.NOUNS, ANSWERS, WORSE, strict=True)
    ]


def thumbs(ups: int = 4, downs: int = 4) -> list[Row]:
    texts = [f"{answer} {noun}" for answer in (*ANSWERS, *WORSE) for noun in tiny.NOUNS]
    return [{"prompt": f"question {n}", "completion": texts[n], "label": n < ups} for n in range(ups + downs)]


def found(
    folder: Path,
    rows: list[Row],
    method: str | None = None,
    held_out: list[Row] | None = None,
    **options: Any,
) -> dict[str, Finding]:
    """The findings by the names of their checks."""
    parameters = {name: options.pop(name) for name in list(options) if name.endswith("_weight")}
    material = gather(
        tiny.write_jsonl(folder / "f.jsonl", rows),
        METHODS[method](**parameters) if method else None,
        **options,
    )
    other = None
    if held_out is not None:
        other = gather(tiny.write_jsonl(folder / "held.jsonl", held_out)).all
    findings = data_findings(material, other)
    assert len({finding.check for finding in findings}) == len(findings)
    return {finding.check: finding for finding in findings}


@pytest.mark.parametrize(
    ("rows", "method"),
    [
        (pairs(), None),
        (pairs(), "dpo"),
        (pairs(), "kto"),
        (pairs(), "sft"),
        (pairs(), "grpo"),
        (thumbs(), "kto"),
        ([{"prompt": TURNS, "completion": text} for text in ANSWERS], "sft"),
    ],
)
def test_sound_data_passes_every_check(rows: list[Row], method: str | None, tmp_path: Path) -> None:
    findings = found(tmp_path, rows, method, held_out=[{"prompt": "new?", "completion": "Something new."}])
    assert {f.check: f.said for f in findings.values() if f.level not in ("ok", "skipped")} == {}
    assert findings["readable rows"].said == f"{len(rows)} rows hold {len(rows)} records"


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


PLANTED = {
    "readable rows": ({"prompt": "p", "chosen": "x"}, "also needs rejected"),
    "empty responses": (pair("p", " ", "no"), "1 of 9 rows have an empty response"),
    "chosen and rejected": (pair("p", "Same text", "same  TEXT"), "the same but for case and white space"),
    "words in prompts": (pair("  ", "yes", "no"), "ask nothing"),
    "words in responses": (pair("p", "yes", "?!"), "without a letter or digit"),
    "prompt in the response": (pair("What is it?", "What is it? It is", "no"), "begins with its prompt"),
    "control characters": (pair("p", "ye\x00s", "no"), "neither printed nor white space"),
    "encoding": (pair("p", "cafÃ©", "no"), "UTF-8 read as Latin-1 or Windows-1252 in 1"),
    "order of roles": (
        {"prompt": [TURNS[1], TURNS[0], TURNS[1]], "chosen": "yes", "rejected": "no"},
        "a system turn that is not the first",
    ),
    "duplicates": (pairs()[0], "say the same as an earlier row"),
    "near-duplicates": (pair("film?", ANSWERS[0].upper() + "!", WORSE[0]), "nearly the same"),
    "contradictions": (pair("film?", WORSE[0], ANSWERS[0]), "the opposite of an earlier row"),
    "very long responses": (pair("p", "long " * 300, "no"), "more than 1,000 characters"),
}


@pytest.mark.parametrize("check", PLANTED)
def test_a_planted_row_is_found_and_named(check: str, tmp_path: Path) -> None:
    row, said = PLANTED[check]
    findings = found(tmp_path, [*pairs(), row], "dpo")
    assert [f.check for f in findings.values() if f.level in ("warning", "error")] == [check]
    finding = findings[check]
    assert said in finding.said and finding.advice
    assert finding.places == ("f.jsonl:9",)
    assert finding.level == ("error" if check in ("readable rows", "empty responses") else "warning")


def test_the_other_faults_of_one_check_are_found_too(tmp_path: Path) -> None:
    same = found(tmp_path, [*pairs(), pair("p", "same", "same")], "dpo")["chosen and rejected"]
    assert (same.level, same.places) == ("error", ("f.jsonl:9",))
    for sign, text in (("U+FFFD", "caf\ufffd"), ("byte order mark", "\ufeffcafe")):
        said = found(tmp_path, [*pairs(), pair("p", text, "no")])["encoding"].said
        assert (
            f"1 of 9 rows hold text that was decoded wrongly: {'the replacement' if sign[0] == 'U' else 'a'}"
            in said
        )
        assert sign in said
    unknown = {"prompt": [{"role": "usr", "content": "x"}], "chosen": "yes", "rejected": "no"}
    roles = found(tmp_path, [*pairs(), unknown])["order of roles"]
    assert roles.level == "error" and "unknown role 'usr'; did you mean 'user'?" in roles.said
    twice = {"prompt": "p", "responses": ["a", "a", "b"], "ranks": [0, 1, 2]}
    finding = found(tmp_path, [twice, {**twice, "prompt": "q"}])["responses in a row"]
    assert (finding.level, finding.values["rows"]) == ("warning", 2)


def test_bad_rows_that_training_leaves_out_are_a_warning(tmp_path: Path) -> None:
    rows = [*pairs(), {"prompt": "p", "chosen": "x"}, pair("p", "", "no")]
    findings = found(tmp_path, rows, "dpo", skip_bad_rows=True)
    for name in ("readable rows", "empty responses"):
        assert findings[name].level == "warning" and findings[name].said.startswith("1 of 10 rows")


def test_a_file_without_a_good_row_is_only_told_so(tmp_path: Path) -> None:
    findings = found(tmp_path, [{"prompt": 1}, pair("p", "", "no")], "dpo")
    assert findings["readable rows"].level == findings["empty responses"].level == "error"
    assert {f.level for f in findings.values()} == {"error", "skipped"}
    assert findings["other checks"].said == "no row holds feedback"


@pytest.mark.parametrize(
    ("roles", "wrong"),
    [
        ("user", ""),
        ("system user assistant user", ""),
        ("user assistant tool tool assistant user", ""),
        ("user system user", "a system turn that is not the first"),
        ("user user", "two user turns in a row"),
        ("user assistant assistant user", "two assistant turns in a row"),
        ("assistant user", "an assistant turn first"),
        ("tool user", "a tool turn first"),
        ("user tool", "a tool turn that answers no assistant"),
        ("system", "a system turn alone"),
    ],
)
def test_roles_take_turns(roles: str, wrong: str) -> None:
    assert disorder(tuple(Message(role, "x") for role in roles.split())) == wrong


def test_what_a_method_cannot_take_is_an_error(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{noun}?", "completion": text} for noun, text in zip(tiny.NOUNS, ANSWERS, strict=True)
    ]
    finding = found(tmp_path, rows, "dpo")["what the method takes"]
    assert finding.level == "error" and "which cannot become pair" in finding.said
    mixed = found(tmp_path, [*rows, *thumbs()])["what the method takes"]
    assert mixed.said == "the file mixes kinds of feedback: 8 demonstrations, 8 thumbs"
    bare = found(tmp_path, [*rows, {"prompt": "only asked"}])["what the method takes"]
    assert (bare.level, bare.places) == ("warning", ("f.jsonl:9",))
    alone = found(tmp_path, [*tiny.thumbs(), *thumbs(1, 0)], "dpo")["what the method takes"]
    assert alone.level == "warning" and "1 of 9 prompts are left out" in alone.said


def test_held_out_prompts_that_are_trained_on_are_found(tmp_path: Path) -> None:
    held_out = [pair("new?", "yes", "no"), pair(" FILM? ", "other", "words")]
    finding = found(tmp_path, pairs(), held_out=held_out)["held-out prompts"]
    assert (finding.level, finding.places) == ("error", ("held.jsonl:2",))
    assert finding.values["pairs"] == [["held.jsonl:2", "f.jsonl:1"]]
    texts = [{"text": text} for text in ANSWERS]
    assert found(tmp_path, texts[:4], held_out=texts[4:])["held-out prompts"].level == "ok"
    assert found(tmp_path, texts[:5], held_out=texts[4:])["held-out prompts"].values["rows"] == 1


def test_a_method_sees_only_what_it_learns_from(tmp_path: Path) -> None:
    """A broken rejected response is nothing to imitation, and no response is anything to prompts."""
    rows = [*pairs(), pair("p", "a fine answer", "cafÃ©")]
    assert found(tmp_path, rows, "dpo")["encoding"].level == "warning"
    assert found(tmp_path, rows, "sft")["encoding"].level == "ok"
    prompts = found(tmp_path, [*rows, pair("p", "?", "cafÃ©")], "grpo")
    assert prompts["encoding"].level == "ok"
    assert prompts["words in responses"].level == prompts["contradictions"].level == "skipped"


def test_places_are_rows_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps([*pairs(), pair("p", "a\x00", "b")], indent=1))
    finding = {f.check: f for f in data_findings(gather(str(path)))}["control characters"]
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "u0000" in text)
    assert finding.places == (f"f.json:{line - 2}",)  # where its object begins


def test_a_record_is_never_its_own_duplicate(tmp_path: Path) -> None:
    """The turns of one conversation share most of their text."""
    talk = [
        {"role": role, "content": text}
        for text, role in zip(ANSWERS * 2, ("user", "assistant") * 8, strict=True)
    ]
    findings = found(tmp_path, [{"messages": talk}], "sft", views=ViewOptions(turns="all"))
    assert findings["what the method takes"].values == {"records": 8}
    assert findings["near-duplicates"].level == "ok"
