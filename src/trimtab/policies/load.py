"""Models by folder or hub name, in the field's formats; LoRA adapters; precision."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from trimtab.errors import UserError, check_bounds, check_positive, nearest
from trimtab.hub import only_local
from trimtab.policies.checks import check_finite, check_fit, check_forward, check_vocabulary
from trimtab.policies.folders import Source, look, reading
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.merging import fit_embeddings, merged
from trimtab.policies.reward_model import RewardModel
from trimtab.policies.trunk import TECHNIQUES

HEAD = "score.weight"  # of a reward model

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
    """Techniques to leave out, with commas between: packing, shared-prompts, fused, fused-lora, frozen-head,
    rounded-sizes."""
    allow_pickle: bool = False
    """Read weights from pickles (pytorch_model.bin, adapter_model.bin) where there are no safetensors.
    A crafted one runs code as you if torch's guard against that has a hole: only from makers you trust."""
    trust_remote_code: bool = False
    """Run the Python code that the model's folder brings, with all that you may do yourself."""

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


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or hub name.

    Raises UserError if there is none.
    """
    from transformers import AutoTokenizer

    with reading("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(
            name, local_files_only=only_local(name), trust_remote_code=trust_remote_code
        )
    if set(tokenizer.get_vocab().values()) <= set(
        tokenizer.all_special_ids
    ):  # transformers makes one of nothing
        raise UserError(f"{name}: there is no tokenizer (tokenizer.json); copy that of its base into it")
    return tokenizer


def load_language_policy(config: ModelConfig, *, trainable: bool = True, seed: int = 0) -> LanguagePolicy:
    """A causal language model as a policy; frozen if not trainable. An adapter is drawn by `seed`.

    Raises UserError for a model that cannot be loaded, is none, or cannot be trained so.
    """
    source = _look(config, "AutoModelForCausalLM", trainable)
    tokenizer = load_tokenizer(source.tokenizer, config.trust_remote_code)
    model, _ = _load("AutoModelForCausalLM", config, source, tokenizer)
    check_vocabulary(config.model, model, tokenizer)
    check_forward(config.model, model)
    model = _prepare(model, config, trainable, "CAUSAL_LM", seed)
    try:
        policy = LanguagePolicy(model, tokenizer, _autocast(config))
    except ValueError as error:
        raise UserError(f"{config.model}: {error}; take a model of another architecture") from error
    policy.trunk.without(config.left_out)
    return policy


def load_reward_model(config: ModelConfig, *, trainable: bool = True, seed: int = 0) -> RewardModel:
    """A sequence classifier with one output. A new head, or an adapter, is drawn by `seed`.

    Raises UserError as `load_language_policy` does, and if a frozen reward model is wanted and the folder
    has no head.
    """
    source = _look(config, "AutoModelForSequenceClassification", trainable)
    tokenizer = load_tokenizer(source.tokenizer, config.trust_remote_code)
    model, has_head = _load("AutoModelForSequenceClassification", config, source, tokenizer, num_labels=1)
    if not has_head:
        if not trainable:
            raise UserError(f"{config.model}: not a reward model: it has no score head; train one first")
        _draw_head(model.score.weight, seed)
    check_vocabulary(config.model, model, tokenizer)
    check_forward(config.model, model)
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


def _look(config: ModelConfig, auto_class: str, trainable: bool) -> Source:
    """Where the model is. Raises UserError for one that cannot be loaded, or not be trained so."""
    source = look(
        config.model,
        auto_class,
        allow_pickle=config.allow_pickle,
        trust_remote_code=config.trust_remote_code,
    )
    if quantised := source.config.get("quantization_config"):
        kind = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else "quantised"
        if source.adapter is not None:
            raise UserError(
                f"{config.model}: its base has quantised weights ({kind}), into which no adapter is merged "
                "without loss; name the base before quantisation in its adapter_config.json"
            )
        if trainable and config.lora_rank == 0:
            raise UserError(
                f"{config.model}: quantised weights ({kind}) cannot be trained; train an adapter on them "
                "with --lora-rank 16, or take the weights before quantisation"
            )
    return source


def _load(
    auto_class: str, config: ModelConfig, source: Source, tokenizer: Any, **kwargs: Any
) -> tuple[Any, bool]:
    """The model, and whether its files have a reward model's head.

    In fp32; below an adapter in the precision of the run, since it stays frozen.
    """
    import transformers

    device = resolve_device(config.device)
    bf16 = config.lora_rank > 0 and resolve_precision(config.precision, device) == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    at_first = torch.float32 if source.adapter else dtype  # a merge in bf16 would lose small changes
    with reading("model", source.base):
        model, info = getattr(transformers, auto_class).from_pretrained(
            source.path,
            dtype=at_first,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_fit says which they are
            use_safetensors=None if config.allow_pickle else True,
            local_files_only=only_local(source.path),
            trust_remote_code=config.trust_remote_code,
            **kwargs,
        )
    causal = auto_class == "AutoModelForCausalLM"
    if not causal and not hasattr(model, "score"):
        kind = type(model).__name__
        raise UserError(f"{source.base}: reward models need an architecture with a `score` head, not {kind}")
    check_fit(source.base, model, info, may_lack="" if causal else HEAD)
    check_finite(source.base, model)
    has_head = HEAD not in info["missing_keys"]
    if source.adapter:
        if causal and source.adapter.get("task_type") == "SEQ_CLS":
            raise UserError(f"{config.model}: the adapter of a reward model; a language model is needed here")
        model, brings_head = merged(model, source, tokenizer)
        has_head = has_head or brings_head
        check_finite(config.model, model)
        for parameter in model.parameters():  # not the buffers: rotary frequencies need all their digits
            parameter.data = parameter.data.to(dtype)
    return model.to(device), has_head


def _prepare(model: Any, config: ModelConfig, trainable: bool, task: str, seed: int) -> nn.Module:
    """Turns dropout off, freezes, adds the adapter."""
    _without_dropout(model)
    if not trainable:
        return model.requires_grad_(False).eval()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.lora_rank > 0:
        with torch.random.fork_rng():  # peft draws from the global stream
            torch.manual_seed(seed)
            model = _with_adapter(model, config, task)
    return model.train()


def _without_dropout(model: nn.Module) -> None:
    """Sampling must equal scoring. Some modules read a probability from their configuration as they run."""
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(vars(holder).items()) if holder is not None else []:
                probability = isinstance(value, int | float) and not isinstance(value, bool)
                if probability and ("drop" in name or (name == "p" and isinstance(module, nn.Dropout))):
                    setattr(holder, name, 0.0)


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
        linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        hint = nearest(config.lora_targets, {"all-linear", *linear})
        raise UserError(
            f"--lora-targets {config.lora_targets}: {str(error).splitlines()[0]} {hint}"
        ) from error


def _give_padding_token(model: Any, tokenizer: Any) -> None:
    """Reward models get a padding token that no response ends with (see RewardModel)."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        fit_embeddings(model, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
