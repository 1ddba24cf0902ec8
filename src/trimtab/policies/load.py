"""Models by folder or hub name, in the field's formats; LoRA adapters; precision."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from trimtab.errors import UserError, check_bounds, check_positive, nearest
from trimtab.hub import hub_answers
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.reward_model import RewardModel
from trimtab.policies.trunk import TECHNIQUES

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class ModelConfig:
    """Which model is trained, and how it is held."""

    model: str
    """A folder or a hub name: a causal language model, or a LoRA adapter (merged before training)."""
    reference: str | None = None
    """The frozen reference; the model itself as it was before training if not given."""
    lora_rank: int = 0
    """Train low-rank adapters (LoRA, Hu et al. 2021) of this rank; 0 trains all weights."""
    lora_alpha: int = 32
    """The adapter's output is scaled by lora_alpha / lora_rank."""
    lora_targets: str = "all-linear"
    """Modules that get an adapter: all-linear, or names separated by commas."""
    precision: Precision = "auto"
    """Of the matrix products; auto takes bf16 where the machine computes in it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third slower."""
    without: str | None = None
    """Techniques to leave out, to compare: packing, shared-prompts, fused, or several with commas between."""

    def __post_init__(self) -> None:
        for name in self.left_out:
            if name not in TECHNIQUES:
                raise UserError(f"without: there is no technique {name!r}; {nearest(name, TECHNIQUES)}")
        check_bounds(self, lora_rank=(0, math.inf))
        check_positive(self, "lora_alpha")

    @property
    def left_out(self) -> list[str]:
        """The names in `without`."""
        return [name.strip() for name in self.without.split(",")] if self.without else []


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model folder or hub name.

    Raises UserError if there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=_only_local(name))
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("tokenizer", name, error) from error


def load_language_policy(config: ModelConfig, *, trainable: bool = True, seed: int = 0) -> LanguagePolicy:
    """A causal language model as a policy; frozen if not trainable. An adapter is drawn by `seed`."""
    tokenizer = load_tokenizer(config.model)
    model, missing = _load("AutoModelForCausalLM", config)
    if missing:
        raise UserError(f"{config.model}: not a language model, as a reward model is not: no {min(missing)}")
    model = _prepare(model, config, trainable, "CAUSAL_LM", seed)
    policy = LanguagePolicy(model, tokenizer, _autocast(config))
    policy.trunk.without(config.left_out)
    return policy


def load_reward_model(config: ModelConfig, *, trainable: bool = True, seed: int = 0) -> RewardModel:
    """A sequence classifier with one output. A new head, or an adapter, is drawn by `seed`.

    Raises UserError if a frozen reward model is wanted and the folder has no head.
    """
    tokenizer = load_tokenizer(config.model)
    model, missing = _load("AutoModelForSequenceClassification", config, num_labels=1)
    if not hasattr(model, "score"):
        name = type(model).__name__
        raise UserError(f"{config.model}: reward models need an architecture with a `score` head, not {name}")
    if "score.weight" in missing:
        if not trainable:
            raise UserError(f"{config.model}: not a reward model: it has no score head; train one first")
        _draw_head(model.score.weight, seed)
    _give_padding_token(model, tokenizer)
    model = _prepare(model, config, trainable, "SEQ_CLS", seed)
    reward_model = RewardModel(model, tokenizer, _autocast(config))
    reward_model.trunk.without(config.left_out)
    return reward_model


def _draw_head(weight: torch.Tensor, seed: int) -> None:
    """From N(0, 1/(H+1)), as in Stiennon et al. 2020 (arXiv:2009.01325, appendix C.3)."""
    values = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        weight.copy_(values / (weight.shape[1] + 1) ** 0.5)


def resolve_model(name: str) -> str:
    """`reviews` is the built-in base model; everything else is a folder or a hub name."""
    if name == "reviews" and not Path(name).exists():
        from trimtab.examples.reviews import MODEL

        return str(MODEL)
    return name


def resolve_device(name: str) -> torch.device:
    """auto means CUDA, then Apple's MPS, then the CPU. Raises UserError if the device is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not available here ({str(error).splitlines()[0]})") from error


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What auto means on this device."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def _autocast(config: ModelConfig) -> torch.dtype | None:
    precision = resolve_precision(config.precision, resolve_device(config.device))
    return torch.bfloat16 if precision == "bf16" else None


def _load(auto_class: str, config: ModelConfig, **kwargs: Any) -> tuple[Any, set[str]]:
    """The model and the names of weights that its folder lacks.

    In fp32; below an adapter in the precision of the run, since it stays frozen.
    """
    import transformers

    adapter = _adapter_config(config.model)
    base = adapter["base_model_name_or_path"] if adapter else config.model
    if Path(base).is_dir():
        base = str(Path(base).resolve())  # an adapter names its base, and is read from other folders too
    device = resolve_device(config.device)
    bf16 = config.lora_rank > 0 and resolve_precision(config.precision, device) == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    at_first = torch.float32 if adapter else dtype  # a merge in bf16 would lose small changes
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            base, dtype=at_first, output_loading_info=True, local_files_only=_only_local(base), **kwargs
        )
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("model", base, error) from error
    missing = set(info["missing_keys"])
    if adapter:
        scores = adapter["task_type"] == "SEQ_CLS"
        if scores and auto_class == "AutoModelForCausalLM":
            raise UserError(f"{config.model}: the adapter of a reward model; a language model is needed here")
        model, missing = _merged(model, config.model), missing - ({"score.weight"} if scores else set())
        for parameter in model.parameters():  # not the buffers: rotary frequencies need all their digits
            parameter.data = parameter.data.to(dtype)
    return model.to(device), missing


def _adapter_config(name: str) -> dict[str, Any] | None:
    """What a folder says of the LoRA adapter in it; None if it holds a whole model."""
    file = Path(name) / "adapter_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _merged(model: Any, folder: str) -> Any:
    """The model with the adapter's changes in its own weights."""
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(folder)
    if config.task_type == "CAUSAL_LM":
        config.task_type = None  # the trunk is the same below a reward model's head
    else:
        _fit_embeddings(model, load_tokenizer(folder))  # it may bring the row of its padding token
    model = PeftModel.from_pretrained(model, folder, config=config).merge_and_unload()
    model.name_or_path = ""  # no folder holds what it is now; see `save`
    return model


def _prepare(model: Any, config: ModelConfig, trainable: bool, task: str, seed: int) -> nn.Module:
    """Turns dropout off (sampling must equal scoring), freezes, adds the adapter."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = 0.0
    if not trainable:
        return model.requires_grad_(False).eval()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.lora_rank > 0:
        with torch.random.fork_rng():  # peft draws from the global stream
            torch.manual_seed(seed)
            model = _with_adapter(model, config, task)
    return model.train()


def lora_config(config: ModelConfig, task: str) -> Any:
    """peft's description of the adapter that `config` asks for; task: CAUSAL_LM or SEQ_CLS."""
    from peft import LoraConfig

    names = config.lora_targets
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=names if names == "all-linear" else [name.strip() for name in names.split(",")],
        task_type=task,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )


def _with_adapter(model: Any, config: ModelConfig, task: str) -> Any:
    from peft import get_peft_model

    try:
        return get_peft_model(model, lora_config(config, task))
    except ValueError as error:
        raise UserError(f"--lora-targets {config.lora_targets}: {error}") from error


def _give_padding_token(model: Any, tokenizer: Any) -> None:
    """Reward models get a padding token that no response ends with (see RewardModel)."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        _fit_embeddings(model, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id


def _fit_embeddings(model: Any, tokenizer: Any) -> None:
    """A row for every token."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def _only_local(name: str) -> bool:
    """Whether a name is looked for on this machine only: a folder, or a download where no hub answers."""
    return Path(name).exists() or not hub_answers()


def _cannot_load(what: str, name: str, error: Exception) -> UserError:
    if Path(name).exists():
        reason = str(error).strip().splitlines()[0]
        return UserError(f"{name}: no {what} could be read from this folder: {reason}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return UserError(f"{name}: no such folder; --model takes a folder or a hub name (owner/name)")
    return UserError(
        f"{name}: neither a folder here nor a {what} that the hub gave; check the name and the network, "
        "or download it once and pass its folder"
    )
