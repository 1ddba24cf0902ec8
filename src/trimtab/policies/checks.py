"""What is looked at in a model once it is loaded, before anything is trained or sampled with it."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trimtab.errors import UserError
from trimtab.policies.folders import reading

log = logging.getLogger("trimtab")

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_fit(name: str, model: Any, info: Mapping[str, Any], may_lack: str = "") -> None:
    """Compares the tensors of the files with those of the model that config.json describes.

    Args:
        info: what from_pretrained says of its loading, with `ignore_mismatched_sizes`.
        may_lack: a tensor that is drawn anew where the files have none.

    Raises UserError if tensors are missing, have other shapes, or are of further layers.
    """
    for key, found, wanted in sorted(info["mismatched_keys"]):
        if key == "score.weight" and found[1:] == wanted[1:]:
            raise UserError(f"{name}: its head has {found[0]} outputs; a reward model has one")
        raise UserError(
            f"{name}: {key} has the shape {list(found)} in the weights, but config.json describes "
            f"{list(wanted)}; the two belong to different models"
        )
    missing = set(info["missing_keys"]) - {may_lack}
    head = model.get_output_embeddings()
    heads = {key for key, _ in model.named_parameters() if head is not None and _is_of(model, head, key)}
    unexpected = set(info["unexpected_keys"])
    if (missing and missing <= heads) or (head is not None and "score.weight" in unexpected):
        lacking = f": no {min(missing)}" if missing else ""
        raise UserError(f"{name}: not a language model, as a reward model is not{lacking}")
    if missing:
        raise UserError(
            f"{name}: the weights lack {len(missing)} of the tensors that config.json describes, such as "
            f"{min(missing)}; copy it again, or correct config.json"
        )
    _check_further(name, model, unexpected)


def _is_of(model: Any, module: Any, key: str) -> bool:
    """Whether a parameter's name is one of this module's."""
    return model.get_submodule(key.rpartition(".")[0]) is module


def _check_further(name: str, model: Any, unexpected: set[str]) -> None:
    """Raises UserError for tensors of layers that config.json does not count; warns of other surplus ones."""
    modules = dict(model.named_modules())
    for key in sorted(unexpected):
        numbered = re.match(r"(.+?)\.(\d+)\.", key)
        layers = modules.get(numbered[1]) if numbered else None
        if numbered and isinstance(layers, nn.ModuleList) and int(numbered[2]) >= len(layers):
            raise UserError(
                f"{name}: the weights have more layers than config.json describes, such as {key}; "
                "correct its num_hidden_layers"
            )
    surplus = (
        unexpected if model.get_output_embeddings() is not None else set()
    )  # else a head's, as it must be
    if surplus:
        log.warning("%s: %d tensors are left out, such as %s", name, len(surplus), min(surplus))


def check_finite(name: str, model: Any) -> None:
    """Raises UserError if a weight is NaN or infinite."""
    for key, weight in model.named_parameters():
        if weight.dtype not in FLOATS or not weight.numel():
            continue
        if not torch.stack(torch.aminmax(weight.detach())).isfinite().all():
            raise UserError(
                f"{name}: {key} holds values that are no finite numbers; the training that wrote it "
                "diverged, or the file is damaged"
            )


def check_vocabulary(name: str, model: Any, tokenizer: Any) -> None:
    """Raises UserError if the tokenizer has ids for which the model has no embedding.

    Tokens for padding and for the unknown may be without: rows are packed, and byte-level tokenizers know
    every text.
    """
    rows = model.get_input_embeddings().num_embeddings
    idle = {tokenizer.pad_token, tokenizer.unk_token} - {tokenizer.bos_token, tokenizer.eos_token}
    vocabulary = {text: number for text, number in tokenizer.get_vocab().items() if text not in idle}
    last = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[last] >= rows:
        raise UserError(
            f"{name}: the tokenizer has ids up to {vocabulary[last]} ({last!r}), but the model's embedding "
            f"has {rows} rows, 0 to {rows - 1}; take the tokenizer that belongs to this model"
        )


@torch.no_grad()
def check_forward(name: str, model: Any) -> None:
    """Reads a few tokens with the model.

    Raises UserError if that fails or gives no finite numbers, and if a token changes what stands before it,
    as in an encoder like BERT.
    """
    rows = model.get_input_embeddings().num_embeddings
    ids = torch.tensor([[(7 * i + 3) % rows for i in range(6)]], device=model.device)
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % rows
    with reading("model", name):
        first, second = (
            model.base_model(input_ids=row, use_cache=False).last_hidden_state[0].float()
            for row in (ids, other)
        )
    # torch's attention makes numbers of NaN in some of its ways, so what it starts from is looked at too
    computed = [buffer for buffer in model.buffers() if buffer.dtype in FLOATS and buffer.numel()]
    if any(not buffer.max() < torch.inf for buffer in computed) or not first.isfinite().all():
        raise UserError(
            f"{name}: it computes no finite numbers; config.json does not belong to these weights"
        )
    limit = float(first.abs().max()) * (1e-4 if model.dtype == torch.float32 else 1e-2)
    if not torch.allclose(first[:-1], second[:-1], rtol=0, atol=limit):
        kind = model.config.model_type
        raise UserError(
            f"{name}: not a causal language model: {kind} looks at the words that it should predict"
        )
