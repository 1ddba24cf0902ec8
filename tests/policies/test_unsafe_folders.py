"""Folders that would run code, as pickles and as Python of their own: never unasked, whatever leads there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.bad_folders import INDEX, WEIGHTS, Damage, config, edit, in_parts, logits, pickle_weights, refusal

from trimtab.policies.load import load_language_policy

# Pickles


def test_pickled_weights_are_read_only_if_asked_for(folder: Path) -> None:
    expected = logits(transformers.AutoModelForCausalLM.from_pretrained(folder))
    pickle_weights(folder)
    said = refusal(folder)
    assert "its weights are a pickle (pytorch_model.bin), which may run any code when it is read" in said
    assert "--allow-pickle" in said
    assert torch.equal(logits(load_language_policy(config(folder, allow_pickle=True)).model), expected)


def test_pickles_of_other_names_are_not_read_even_then(folder: Path) -> None:
    pickle_weights(folder, "consolidated.00.pth")
    assert "consolidated.00.pth" in refusal(folder) and "--allow-pickle" in refusal(folder)
    said = refusal(folder, allow_pickle=True)
    assert "consolidated.00.pth cannot be read, only model.safetensors or pytorch_model.bin" in said


def test_a_pickle_beside_safetensors_is_left_alone(folder: Path, unpickled: list[str]) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    load_language_policy(config(folder, allow_pickle=True))
    assert unpickled == []


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_harmful_pickle_does_nothing_even_if_asked_for(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"lm_head.weight": Harm(folder / "harm")}, folder / "pytorch_model.bin")
    assert "no model could be read from it: Weights only load failed" in refusal(folder, allow_pickle=True)
    assert not (folder / "harm").exists()


def named_by_config(folder: Path) -> None:
    pickle_weights(folder, "adapter_model.bin")
    edit(folder / "config.json", transformers_weights="adapter_model.bin")


def named_by_index(folder: Path) -> None:
    pickle_weights(folder, "weights.bin")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "weights.bin"}}))


@pytest.mark.parametrize("hide", [pickle_weights, named_by_config, named_by_index])
def test_no_way_leads_to_a_pickle(folder: Path, unpickled: list[str], hide: Damage) -> None:
    hide(folder)
    refusal(folder)
    assert unpickled == []


def test_an_index_names_nothing_outside_its_folder(folder: Path) -> None:
    parts = in_parts(folder)
    shutil.move(parts[0], folder.parent / "outside.safetensors")
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(
        folder / INDEX,
        weight_map={k: "../outside.safetensors" if v == parts[0].name else v for k, v in index.items()},
    )
    assert "names ../outside.safetensors, which is no safetensors file beside it" in refusal(folder)


def test_an_adapter_that_is_a_pickle_is_read_only_if_asked_for(adapter: Path, unpickled: list[str]) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    expected = logits(load_language_policy(config(adapter)).model)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(b"a pickle")
    assert "its weights are a pickle (adapter_model.bin)" in refusal(adapter)
    assert unpickled == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **kwargs: weights)
        merged = load_language_policy(config(adapter, allow_pickle=True))
    assert torch.equal(logits(merged.model), expected)


def test_the_adapter_of_a_base_is_not_read_unasked(folder: Path, adapter: Path, unpickled: list[str]) -> None:
    """transformers would take it with the base, pickles too, whatever `use_safetensors` says."""
    shutil.copy(adapter / "adapter_config.json", folder)
    (folder / "adapter_model.bin").write_bytes(b"a pickle")
    assert "an adapter itself; merge it into its own base first" in refusal(adapter)
    assert unpickled == []


# Code that a folder brings

CODE = """from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = {kind!r}
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def with_code(folder: Path, kind: str) -> Path:
    """Gives the folder code of its own, which leaves a trace when it is run."""
    marker = folder.parent / "was run"
    (folder / "own.py").write_text(CODE.format(marker=str(marker), kind=kind))
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    edit(folder / "config.json", model_type=kind, auto_map=auto_map)
    return marker


def test_code_in_a_folder_is_run_only_if_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    expected = logits(transformers.AutoModelForCausalLM.from_pretrained(folder))
    marker = with_code(folder, "own")
    said = refusal(folder)
    assert "brings Python code of its own (auto_map)" in said and "--trust-remote-code" in said
    assert not marker.exists()
    policy = load_language_policy(config(folder, trust_remote_code=True))
    assert marker.exists() and type(policy.model).__name__ == "OwnForCausalLM"
    assert torch.equal(logits(policy.model), expected)


def test_code_is_not_needed_for_what_transformers_knows(folder: Path) -> None:
    marker = with_code(folder, "llama")
    assert type(load_language_policy(config(folder)).model).__name__ == "LlamaForCausalLM"
    assert not marker.exists()


def test_code_for_the_tokenizer_alone_is_not_run_either(folder: Path) -> None:
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]},
    )
    (folder / "own.py").write_text("raise SystemExit('was run')")
    assert "brings Python code of its own (auto_map)" in refusal(folder)


# Models of the hub


def test_an_adapter_of_the_hub_is_merged_into_its_base(
    folder: Path, adapter: Path, hub: Callable[[str, Path], None]
) -> None:
    expected = logits(load_language_policy(config(adapter)).model)
    edit(adapter / "adapter_config.json", base_model_name_or_path="owner/base")
    hub("owner/base", folder)
    hub("owner/adapter", adapter)
    policy = load_language_policy(config("owner/adapter"))
    assert torch.equal(logits(policy.model), expected) and not policy.has_adapter


def test_no_way_leads_to_a_pickle_of_the_hub(
    folder: Path, adapter: Path, hub: Callable[[str, Path], None], unpickled: list[str]
) -> None:
    edit(adapter / "adapter_config.json", base_model_name_or_path="owner/base")
    hub("owner/base", folder)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    hub("owner/adapter", adapter)
    named_by_index(folder)
    hub("owner/index", folder)
    (folder / INDEX).unlink()
    hub("owner/bin", folder)
    assert "its weights are a pickle (adapter_model.bin)" in refusal("owner/adapter")
    assert "names weights.bin, which is no safetensors file beside it" in refusal("owner/index")
    assert "owner/bin: no model could be read from it: " in refusal("owner/bin")
    assert unpickled == []
