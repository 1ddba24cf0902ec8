"""What lies in a model's folder, looked at before anything is loaded from it: one sentence for each fault.

Weights are read from safetensors. A pickle may run any code when it is read, and the libraries take one
unasked: transformers where a configuration or an index names it, and for the adapter of a base, whatever
`use_safetensors` says; peft wherever there are no safetensors. All of these ways are closed here.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import UserError, nearest, ran_out_of_memory, storage_failed
from trimtab.hub import hub_answers, only_local

WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PICKLED, PICKLED_ADAPTER = ("pytorch_model.bin", "pytorch_model.bin.index.json"), "adapter_model.bin"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
BESIDE = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")  # pickles that are no weights
BUILT_IN = "reviews"
POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Source:
    """Where the parts of a model are.

    Attributes:
        name: the folder or hub name that was asked for.
        base: that of the whole model; another than `name` below an adapter.
        path: the same as an absolute path, if it is a folder.
        config: the base's config.json.
        adapter: what adapter_config.json says; None for a whole model.
    """

    name: str
    base: str
    path: str
    config: dict[str, Any]
    adapter: dict[str, Any] | None

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer is: with the adapter, or else with its base."""
        own = any(find(self.name, file) for file in ("tokenizer.json", "tokenizer_config.json"))
        return self.name if own or self.adapter is None else self.base


def look(
    name: str, auto_class: str, *, allow_pickle: bool = False, trust_remote_code: bool = False
) -> Source:
    """Finds the model and its parts.

    Args:
        auto_class: of transformers, such as AutoModelForCausalLM.

    Raises UserError for what cannot be loaded or must not be.
    """
    if Path(name).is_file():
        raise UserError(f"{name}: a file; a model is a folder, or a hub name (owner/name)")
    adapter = _adapter(name)
    base = name if adapter is None else adapter["base_model_name_or_path"]
    try:
        config = _config(base)
        if adapter is not None and find(base, "adapter_config.json"):
            raise UserError(f"{base}: an adapter itself; merge it into its own base first")
        _check_architecture(base, config, auto_class, trust_remote_code)
        _check_weights(base, config, allow_pickle)
    except UserError as error:
        if adapter is None:
            raise
        where = "base_model_name_or_path in its adapter_config.json says where that is"
        raise UserError(f"{name}: the base of this adapter cannot be loaded ({where}): {error}") from error
    if adapter is not None:
        _check_adapter(name, allow_pickle)
    # resolved: an adapter that is trained names its base, and is read from other folders too
    return Source(name, base, str(Path(base).resolve()) if Path(base).is_dir() else base, config, adapter)


def find(name: str, file: str) -> Path | None:
    """A file of a folder, or of a model on the hub, from where it is then fetched; None if there is none."""
    if Path(name).exists():
        return Path(name, file) if Path(name, file).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError

    try:
        return Path(hf_hub_download(name, file, local_files_only=only_local(name)))
    except GatedRepoError as error:
        page = f"https://huggingface.co/{name}"
        raise UserError(
            f"{name}: its owner asks you to agree first; do so on {page}, then `hf auth login`"
        ) from error
    except (EntryNotFoundError, HfHubHTTPError, ValueError):  # ValueError: no name that the hub could have
        return None


@contextmanager
def reading(what: str, name: str) -> Iterator[None]:
    """Turns whatever a library raises about the user's files into one sentence.

    Memory or a disk that is not enough is no fault of the files, and goes on as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if ran_out_of_memory(error) is not None or storage_failed(error, name):
            raise
        if "trust_remote_code" in str(error):
            raise _own_code(name) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        raise UserError(f"{name}: no {what} could be read from it: {reason}") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if there is none."""
    _refuse_pointer(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise UserError(f"{file}: not valid JSON ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no JSON object; copy it again")
    return found


def _config(name: str) -> dict[str, Any]:
    """What config.json says."""
    file = find(name, "config.json")
    if file is not None:
        return read_json(file)
    if Path(name).is_dir():
        inner = next(iter(sorted(Path(name).glob("*/config.json"))), None)
        hint = f"did you mean {inner.parent}?" if inner else "it holds no model that transformers saved"
        raise UserError(f"{name}: there is no config.json in this folder; {hint}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"{name}: no such folder{_near(name) or '; a model is a folder or a hub name (owner/name)'}"
        )
    if not hub_answers():
        reason = "nor an earlier download, and the hub does not answer; check the name and the network"
    else:
        reason = (
            "nor a model that the hub gives you; check the name, and `hf auth login` for what is not public"
        )
    raise UserError(f"{name}: neither a folder here {reason}{_near(name)}")


def _near(name: str) -> str:
    """The end of a message: a model's folder, or the built-in one, of almost this name; or nothing."""
    beside = Path(name).parent
    folders = [*beside.glob("*/config.json"), *beside.glob("*/adapter_config.json")]
    hint = nearest(name.removeprefix("./"), [BUILT_IN, *(str(file.parent) for file in folders)])
    return f"; {hint}" if hint.startswith("did") else ""


def _own_code(name: str) -> UserError:
    return UserError(
        f"{name}: this model brings Python code of its own (auto_map), which is not run unasked; read it, "
        "and if you trust it pass --trust-remote-code"
    )


def _check_architecture(name: str, config: dict[str, Any], auto_class: str, trust_remote_code: bool) -> None:
    """Raises UserError for an architecture that is unknown, or is not of the class that is wanted."""
    from transformers import CONFIG_MAPPING, __version__
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    kind, own_code = config.get("model_type"), config.get("auto_map")
    if own_code and trust_remote_code:
        return
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if own_code:
            raise _own_code(name)
        hint = nearest(kind, CONFIG_MAPPING) if isinstance(kind, str) else ""
        hint = hint if hint.startswith("did") else "update transformers, or correct it"
        raise UserError(
            f"{name}: config.json has model_type {kind!r}, which transformers {__version__} does not know; "
            f"{hint}"
        )
    with reading("configuration", name):
        CONFIG_MAPPING[kind].from_dict(dict(config))
    causal = auto_class == "AutoModelForCausalLM"
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if causal else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if not causal and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in known:
        raise UserError(
            f"{name}: transformers has no reward models (sequence classifiers) of the kind {kind}"
        )
    if kind not in known or config.get("is_encoder_decoder"):
        raise UserError(
            f"{name}: {kind} is not a causal language model, which is what is trained here; take one like "
            "Llama, Qwen or GPT-2"
        )


def _check_weights(name: str, config: dict[str, Any], allow_pickle: bool) -> None:
    """Raises UserError unless there are whole weights; of a hub name only what can be known beforehand."""
    named = str(config.get("transformers_weights") or "")
    if named.endswith(PICKLES):
        raise UserError(f"{name}: config.json takes its weights from {named}, a pickle; take that line out")
    index = find(name, named if named.endswith(".index.json") else INDEX)
    shards = [] if index is None else _shards(index)
    if not Path(name).is_dir():
        return
    if (whole := Path(name, named or WEIGHTS)).suffix == ".safetensors" and whole.is_file():
        shards = [whole]
    pickled = any(Path(name, file).is_file() for file in PICKLED)
    if not shards and not (allow_pickle and pickled):
        raise _no_weights(Path(name), WEIGHTS, allow_pickle)
    absent = [shard for shard in shards if not shard.is_file()]
    if absent:
        others = f" and {len(absent) - 1} more" if absent[1:] else ""
        raise UserError(f"{absent[0]}{others}: missing, but {INDEX} names it; copy the whole folder again")
    for shard in shards:
        _check_safetensors(shard)


def _check_adapter(name: str, allow_pickle: bool) -> None:
    """Raises UserError unless the weights of the adapter are whole, and no pickle."""
    weights = find(name, ADAPTER)
    if weights is not None:
        _check_safetensors(weights)
    elif not (allow_pickle and find(name, PICKLED_ADAPTER)):
        raise _no_weights(Path(name), ADAPTER, allow_pickle)


def _adapter(name: str) -> dict[str, Any] | None:
    """What a folder or a hub name says of the adapter in it; None if it holds a whole model."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    file = find(name, "adapter_config.json")
    if file is None:
        return None
    adapter = read_json(file)
    kind, base = adapter.get("peft_type"), adapter.get("base_model_name_or_path")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UserError(f"{file}: an adapter of an unknown peft_type, {kind!r}; LORA is what is read here")
    if not isinstance(base, str) or not base:
        raise UserError(f"{file}: names no base; put its folder into base_model_name_or_path")
    return adapter


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all of them safetensors that lie beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: names no weights; copy it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise UserError(f"{index}: names {name}, which is no safetensors file beside it; it is not read")
    return [index.with_name(name) for name in names]


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    _refuse_pointer(file)
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged ({error}); copy or download it again") from error


def _refuse_pointer(file: Path) -> None:
    """Raises UserError for what a clone without Git LFS leaves in the place of a large file."""
    with file.open("rb") as content:
        if content.read(len(POINTER)) == POINTER:
            raise UserError(f"{file}: only a pointer of Git LFS; run `git lfs pull` in its folder")


def _no_weights(folder: Path, wanted: str, allow_pickle: bool) -> UserError:
    """What to say of a folder, or of a hub name, without safetensors."""
    files = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else [PICKLED_ADAPTER]
    pickles = [name for name in files if name.endswith(PICKLES) and not name.startswith(BESIDE)]
    if pickles and allow_pickle:
        readable = " or ".join((wanted, PICKLED_ADAPTER if wanted == ADAPTER else PICKLED[0]))
        return UserError(f"{folder}: {pickles[0]} cannot be read, only {readable}")
    if pickles:
        return UserError(
            f"{folder}: its weights are a pickle ({pickles[0]}), which may run any code when it is read; "
            "take safetensors of it, or pass --allow-pickle if you trust who made it"
        )
    if gguf := [name for name in files if name.endswith(".gguf")]:
        return UserError(f"{folder}: {gguf[0]} cannot be trained; take the safetensors that it was made from")
    return UserError(f"{folder}: there are no weights ({wanted}) in this folder; copy it again")
