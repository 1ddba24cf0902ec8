"""`trimtab train METHOD` as a user runs it, and whether the field's tools read what it leaves."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests import tiny
from trimtab.cli import main
from trimtab.methods import METHODS

OFFLINE = [name for name, method in METHODS.items() if not method.online]
ROWS = {
    "demonstration": tiny.demonstrations,
    "pair": tiny.pairs,
    "ranking": tiny.pairs,
    "thumbs": tiny.thumbs,
    "score": tiny.scores,
}
SHORT = ["--batch-size", "4", "--precision", "fp32", "--learning-rate", "1e-3"]
IDS = torch.tensor([[0, 5, 9, 12, 7]])


def words(method: str, folder: Path, *options: str, data: str = "", model: str = "") -> list[str]:
    data = data or tiny.write_jsonl(folder / f"{method}.jsonl", ROWS[METHODS[method].data]())
    return ["train", method, "--model", model or tiny.model_folder(), "--data", data, *SHORT, *options]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("method", OFFLINE)
def test_every_method_leaves_a_model_that_transformers_loads(
    method: str, rank: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = words(method, tmp_path, "--out", str(out), "--steps", "3", "--lora-rank", str(rank))
    capsys.readouterr()  # making the model said something
    assert main(given) == 0
    printed = capsys.readouterr()
    assert "trained in " in printed.out and f"the model is in {out}" in printed.out.replace("\n", "")
    assert printed.err == ""
    scores = METHODS[method].trains == "reward model"
    auto: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    base = auto.from_pretrained(tiny.model_folder(), **({"num_labels": 1} if scores else {}))
    if rank == 0:
        model = auto.from_pretrained(out)
    elif scores:
        model = PeftModel.from_pretrained(base, out)
    else:
        model = AutoPeftModelForCausalLM.from_pretrained(out)
    trained = dict(model.get_base_model().named_parameters() if rank else model.named_parameters())
    assert logits(model).shape == ((1, 1) if scores else (1, 5, 40))
    if rank == 0:
        name = "model.layers.0.self_attn.q_proj.weight"
        assert not torch.equal(trained[name], dict(base.named_parameters())[name])
    else:
        assert any("lora_B" in n and p.abs().max() > 0 for n, p in trained.items())
    assert AutoTokenizer.from_pretrained(out)("the film").input_ids
    curve = tiny.read_jsonl(out / "metrics.jsonl")
    assert [row["step"] for row in curve] == [1, 2, 3]


def test_its_options_train_the_same_model_again(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    assert main(words("ipo", tmp_path, "--out", str(first), "--seed", "7", "--per-token")) == 0
    options = yaml.safe_load((first / "trimtab.yaml").read_text())
    assert (options["method"], options["per_token"], options["seed"]) == ("ipo", True, 7)
    assert main(["train", "ipo", "--config", str(first / "trimtab.yaml"), "--out", str(again)]) == 0
    one, two = weights(first), weights(again)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert main(["train", "ipo", f"--config={first}/trimtab.yaml", "--seed", "8", "--out", f"{again}2"]) == 0
    other = weights(tmp_path / "again2")
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["dpo", "reward_model"])
def test_training_goes_on_from_an_adapter(method: str, tmp_path: Path) -> None:
    """From the merged model: its first reference is not the base, and its result holds both changes."""
    sft, out = tmp_path / "sft", tmp_path / "out"
    assert main(words("sft", tmp_path, "--out", str(sft), "--epochs", "4", "--lora-rank", "4")) == 0
    options = ["--out", str(out), "--steps", "1", "--lora-rank", "4"]
    assert main(words(method, tmp_path, *options, model=str(sft))) == 0
    curve = tiny.read_jsonl(out / "metrics.jsonl")
    if method == "dpo":
        assert curve[0]["loss"] == pytest.approx(0.693147, abs=1e-5)  # policy = reference: log 2
        before, after = (
            AutoPeftModelForCausalLM.from_pretrained(sft),
            AutoModelForCausalLM.from_pretrained(out),
        )
        base = AutoModelForCausalLM.from_pretrained(tiny.model_folder())
        changed = (logits(before) - logits(base)).abs().max()
        assert (logits(after) - logits(before)).abs().max() < 0.5 * changed
    else:
        assert logits(AutoModelForSequenceClassification.from_pretrained(out)).shape == (1, 1)


def test_conversations_save_their_template(tmp_path: Path) -> None:
    rows = [
        {
            "chosen": [{"role": "user", "content": p}, {"role": "assistant", "content": tiny.GOOD}],
            "rejected": [{"role": "user", "content": p}, {"role": "assistant", "content": tiny.BAD}],
        }
        for p in tiny.PROMPTS
    ]
    data = tiny.write_jsonl(tmp_path / "chats.jsonl", rows)
    assert main(words("dpo", tmp_path, "--out", str(tmp_path / "out"), "--steps", "1", data=data)) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    shown = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert shown == "<s>\n\nHuman: hi"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--betta", "1"], "unknown option --betta; did you mean --beta?"),
        (["--beta", "x"], "--beta x: expected a number; see trimtab train dpo --help"),
        (["--steps", "1.5"], "--steps 1.5: expected a whole number; see trimtab train dpo --help"),
        (["--schedule", "wavy"], "invalid choice 'wavy' for argument '--schedule'"),
        (["--beta", "-1"], "--beta -1.0: dpo takes values from 1e-06 to 1000"),
        (["--batch-size", "0"], "batch_size is 0; it must be a number above 0"),
        (["--steps", "0"], "steps is 0; it must be a number above 0"),
        (["--epochs", "0"], "epochs is 0; it must be a number above 0"),
        (["--learning-rate", "nan"], "learning_rate is nan; it must be a number above 0"),
        (["--max-length", "1"], "max_length is 1; it must be 2 or more"),
        (["--warmup", "1.1"], "warmup is 1.1; it must be from 0 to 1"),
        (["--seed", "-1"], "seed is -1; it must be 0 or more"),
        (["--lora-rank", "-4"], "lora_rank is -4; it must be 0 or more"),
        (["--model", "./nothing"], "./nothing: no such folder; a model is a folder or a hub name"),
        (
            ["--model", "owner/nothing"],
            "owner/nothing: neither a folder here nor an earlier download",
        ),
        (["--reference", "./nothing"], "./nothing: no such folder"),
        (["--data", "nothing.jsonl"], "nothing.jsonl: there is no such file or folder"),
        (["--data", "{folder}/empty.jsonl"], "empty.jsonl: there are no rows in it"),
        (["--data", "{folder}/bad.jsonl"], "bad.jsonl:2: broken JSON at column 11"),
        (["--data", "{folder}/shown.jsonl"], "8 of 8 records are of the kind demonstration"),
        (["--out", "{folder}"], " exists already; choose another --out, or delete it"),
        (["--config", "{folder}/key.yaml"], "key.yaml: unknown key 'betta'; did you mean 'beta'?"),
        (["--config", "{folder}/type.yaml"], "type.yaml: beta: expected a number, found [1, 2]"),
        (["--config", "{folder}/kto.yaml"], "kto.yaml: holds the options of 'kto', not of 'dpo'"),
        (["--config"], "--config needs the path of a YAML file"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "empty.jsonl": "",
        "bad.jsonl": '{"prompt": "a", "chosen": " b", "rejected": " c"}\n{"prompt" 1}\n',
        "key.yaml": "betta: 1\n",
        "type.yaml": "beta: [1, 2]\n",
        "kto.yaml": "method: kto\nbeta: 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    tiny.write_jsonl(tmp_path / "shown.jsonl", tiny.demonstrations())
    given = words("dpo", tmp_path, "--out", str(tmp_path / "out"))
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert main([*given, *(word.format(folder=tmp_path) for word in options)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("trimtab: ") and message in printed.err
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
    assert sorted(p for p in tmp_path.iterdir() if p.name != "cache") == before


def test_feedback_on_one_prompt_cannot_train_kto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.write_jsonl(tmp_path / "one.jsonl", tiny.thumbs(["a"]))
    assert main(words("kto", tmp_path, "--out", str(tmp_path / "out"), data=data)) == 2
    assert "more than half of this feedback is about one prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        (["train"], 2, "METHOD is one of"),
        (["train", "--help"], 0, "METHOD is one of"),
        (["train", "--model", "x"], 2, "the method comes first"),
        (["train", "dop"], 2, "unknown method 'dop'; did you mean 'dpo'?"),
        (["train", "dpo", "--model", "x"], 2, "--data and --out are missing"),
    ],
)
def test_the_method_comes_first(
    given: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == status
    printed = capsys.readouterr()
    assert message in printed.out + printed.err


@pytest.mark.parametrize("method", METHODS)
def test_help_names_every_parameter(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", method, "--help"])
    assert not end.value.code
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert METHODS[method].source.split(",")[0] in shown
    parameters = [field.name for field in dataclasses.fields(METHODS[method])]
    for name in (*parameters, "lora_rank", "learning_rate", "out", "data"):
        assert re.search(rf"--{name.replace('_', '-')}[ ,]", shown)
