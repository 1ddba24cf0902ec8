"""LoRA adapters merged into their base, and refused where they do not fit it."""

import re
import warnings
from typing import Any

from trimtab.errors import UserError
from trimtab.policies.folders import Source, reading
from trimtab.policies.model import OWN

SCORE = "base_model.model.score."  # how the names of a reward model's head begin in the files of peft
MISMATCH = re.compile(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)", re.DOTALL)


def merged(model: Any, source: Source, tokenizer: Any) -> tuple[Any, bool]:
    """The model with the adapter's changes in its own weights, and whether these bring a score head.

    Raises UserError if the adapter was made for another base.
    """
    from peft import PeftConfig, PeftModel, load_peft_weights

    folder = source.name
    with reading("adapter", folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft warns of is refused below
        config = PeftConfig.from_pretrained(folder)
        if config.task_type == "CAUSAL_LM":
            config.task_type = None  # the trunk is the same below a reward model's head
        else:
            fit_embeddings(model, tokenizer)  # it may bring the row of its padding token
        names = load_peft_weights(folder, device="cpu").keys()
        has_head = any(name.startswith(SCORE) for name in names)
        if config.task_type == "SEQ_CLS" and not has_head:
            raise UserError(f"{folder}: not a reward model: its adapter has no score head; train one first")
        try:
            adapted = PeftModel.from_pretrained(model, folder, config=config)
        except RuntimeError as error:
            raise _misfit(source, error) from error
        result = adapted.load_adapter(folder, OWN)  # once more, for what it says of the names
    odd = [*result.missing_keys, *(key for key in result.unexpected_keys if "lora_" in key)]
    if odd:
        raise UserError(f"{folder}: the adapter does not fit its base {source.base}, as {min(odd)} shows")
    if not hasattr(adapted, "merge_and_unload"):
        raise UserError(f"{folder}: a {config.peft_type} adapter cannot be merged; a LoRA adapter can")
    with reading("adapter", folder):
        whole = adapted.merge_and_unload()
    whole.name_or_path = ""  # no folder holds what it is now; see `save`
    return whole, has_head


def fit_embeddings(model: Any, tokenizer: Any) -> None:
    """A row for every token."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def _misfit(source: Source, error: RuntimeError) -> Exception:
    """The sentence for an adapter whose tensors have other shapes than its base asks for."""
    found = MISMATCH.search(str(error))
    if not found:
        return error
    key, shape, wanted = found.groups()
    return UserError(
        f"{source.name}: the adapter does not fit its base {source.base}: {key} has the shape {shape}, where "
        f"{wanted} is needed"
    )
