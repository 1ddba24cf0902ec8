"""Several models for the memory of one: LoRA adapters and heads on one frozen trunk.

             adapter     head
actor        default     the language model's own
critic       critic      [H] -> 1, trained
reward       reward      [H] -> 1, frozen
reference    none        the language model's own
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import UserError
from trimtab.feedback.sequences import Sequences
from trimtab.policies.actor_critic import Critic, save_head, value_head
from trimtab.policies.folders import look
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_tokenizer, lora_config
from trimtab.policies.model import OWN, keeping_trainable

CRITIC, REWARD = "critic", "reward"  # names of adapters beside the actor's own
_SCORE = "base_model.model.score"  # a reward model's head in the files of peft


class _Active(AbstractContextManager[None]):
    """See `active`. Unlike a generator it can be entered again, as each backward pass needs."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name, self.before = model, name, OWN

    def __enter__(self) -> None:
        if not self.model.has_active_enabled_adapter:
            raise ValueError(f"the adapter {self.name} cannot work where all adapters are turned off")
        self.before = self.model.active_adapter
        self._switch(self.name)

    def __exit__(self, *_: object) -> None:
        self._switch(self.before)

    def _switch(self, name: str) -> None:
        if name != self.model.active_adapter:
            with keeping_trainable(self.model):
                self.model.set_adapter(name)


def active(model: Any, name: str) -> AbstractContextManager[None]:
    """Within it the adapter of this name of a PeftModel works, and no other.

    Which parameters are trained never changes, so graphs of several adapters can wait for one
    backward pass. Layers that the backward pass computes again need `checkpoint_by_adapter`.
    """
    return _Active(model, name)


def checkpoint_by_adapter(model: Any) -> None:
    """With gradient checkpointing, has each layer computed again with the adapter of its forward pass.

    The backward pass runs when `active` has ended: without this it would take the actor's adapter
    for the critic's layers, and give wrong gradients without a word.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), active(model, model.active_adapter)

    trunk = model.get_base_model()
    if trunk.is_gradient_checkpointing:
        trunk.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})


def adapter_critic(actor: LanguagePolicy, config: ModelConfig, seed: int) -> Critic:
    """An adapter like the actor's and a value head, on the actor's trunk: a critic without a model.

    The head starts at zero, as do the adapter's changes; the rest of the adapter is drawn by `seed`.
    Both are saved: the adapter as peft does, the head as `head.safetensors`.

    Raises UserError if the actor has no adapter.
    """
    if not actor.has_adapter:
        raise UserError(
            "a critic on the policy's trunk is an adapter, as the policy must be: set --lora-rank"
        )
    model = actor.model
    with torch.random.fork_rng():  # peft draws from the global stream
        torch.manual_seed(seed)
        adapter = _add(model, CRITIC, lora_config(config, "CAUSAL_LM"))
    head = value_head(actor)
    own = [*adapter, *head.parameters()]
    checkpoint_by_adapter(model)

    def save(folder: Path) -> None:
        _save_adapter(model, CRITIC, folder)
        save_head(head, folder)

    return Critic(_hidden_by_adapter(actor), head, own, save, learning_rate=1e-4)


def _hidden_by_adapter(actor: LanguagePolicy) -> Callable[[Sequences, Tensor], Tensor]:
    """The hidden states of the critic's adapter; the actor's, which `Critic` offers, are not needed."""

    def hidden(sequences: Sequences, _: Tensor) -> Tensor:
        with active(actor.model, CRITIC):
            return actor.trunk.hidden(sequences)

    return hidden


class SharedRewardModel:
    """A frozen reward model that is an adapter and a head on the policy's trunk.

    Args:
        actor: the policy; holds the adapter "reward".
        head: [H] -> 1.
        tokenizer: the reward model's.
    """

    def __init__(self, actor: LanguagePolicy, head: nn.Module, tokenizer: Any) -> None:
        self.actor = actor
        self.head = head
        self.tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        return self.actor.device

    @torch.no_grad()
    def scores(self, sequences: Sequences) -> Tensor:
        """One score for each response: [S] float32. Only differences mean something."""
        with active(self.actor.model, REWARD), self.actor.autocasting():
            last = self.actor.trunk.hidden(sequences)[sequences.last_index]
            return self.head(last)[:, 0].float()


def shared_reward_model(actor: LanguagePolicy, folder: str) -> SharedRewardModel:
    """The reward model in `folder`, trained with LoRA on the policy's base, on the policy's trunk.

    Raises UserError if the policy has no adapter, if the folder holds no LoRA reward model, if that
    was trained on another base, or if it trained more than its adapter and its head.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    config = _reward_config(actor, folder)
    look(folder, "AutoModelForSequenceClassification")  # refuses pickles, which peft would read
    weights = load_peft_weights(folder, device="cpu")
    head = _head(weights, folder).to(actor.device)
    adapter = {key: weights.pop(key) for key in list(weights) if "lora_" in key}
    _check_frozen(actor.model, weights, folder)
    try:
        _add(actor.model, REWARD, config, trained=False)
        result: Any = set_peft_model_state_dict(actor.model, adapter, adapter_name=REWARD)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{folder}: its adapter does not fit its base: {str(error).splitlines()[0]}"
        ) from error
    absent = [key for key in result.missing_keys if REWARD in key.split(".")]
    if absent or result.unexpected_keys:
        name = [*absent, *result.unexpected_keys][0]
        raise UserError(
            f"{folder}: its adapter does not fit its configuration, as {name} shows; copy it again"
        )
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > actor.trunk.hf.get_input_embeddings().num_embeddings:
        tokenizer = actor.tokenizer  # the same without a token for padding, which has no row on this trunk
    return SharedRewardModel(actor, head, tokenizer)


def _reward_config(actor: LanguagePolicy, folder: str) -> Any:
    """The adapter's configuration, as it is on a language model; raises UserError if it cannot be there."""
    from peft import PeftConfig

    if not actor.has_adapter:
        raise UserError(f"{folder}: shares the trunk of a policy only below adapters: set --lora-rank")
    remedy = (
        "train it with `trimtab train reward_model --lora-rank` on the policy's --model, "
        "or have it loaded as a model of its own"
    )
    known = (Path(folder) / "adapter_config.json").exists()
    config = PeftConfig.from_pretrained(folder) if known else None
    if config is None or config.peft_type != "LORA" or config.task_type != "SEQ_CLS":
        raise UserError(f"{folder}: not a LoRA reward model, so it cannot share the policy's trunk; {remedy}")
    theirs = _resolved(config.base_model_name_or_path)
    ours = _resolved(actor.model.peft_config[OWN].base_model_name_or_path)
    if theirs != ours:
        ours = ours or "a base that was merged from an adapter"
        raise UserError(f"{folder}: a reward model on {theirs}, but the policy is on {ours}; {remedy}")
    # the head is not in the language model; dropout is for training only, and the actor is in training
    config.task_type, config.modules_to_save, config.lora_dropout = None, None, 0.0
    return config


def _resolved(base: str | None) -> str:
    return str(Path(base).resolve()) if base and Path(base).is_dir() else base or ""


def _head(weights: dict[str, Tensor], folder: str) -> nn.Linear:
    """Takes the score head out of the weights of a reward model's adapter."""
    weight, bias = weights.pop(f"{_SCORE}.weight", None), weights.pop(f"{_SCORE}.bias", None)
    if weight is None or len(weight) != 1:
        raise UserError(
            f"{folder}: not a reward model: it has no score head with one output; train one first"
        )
    head = nn.Linear(weight.shape[1], 1, bias=bias is not None)
    head.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return head.requires_grad_(False)


def _check_frozen(model: nn.Module, weights: dict[str, Tensor], folder: str) -> None:
    """Raises UserError unless these are the trunk's own, as the embeddings are that got a row for padding."""
    trunk = dict(model.named_parameters())
    for name, weight in weights.items():
        ours = trunk.get(name)
        rows = 0 if ours is None else len(ours)
        if ours is None or not torch.equal(weight[:rows].bfloat16(), ours.detach().cpu().bfloat16()):
            raise UserError(
                f"{folder}: trained more than an adapter and a score head ({name}), so it cannot share "
                "the policy's trunk; have it loaded as a model of its own"
            )


def _add(model: Any, name: str, config: Any, *, trained: bool = True) -> list[nn.Parameter]:
    """Adds an adapter beside those that are there; its parameters."""
    config.base_model_name_or_path = model.peft_config[OWN].base_model_name_or_path
    with keeping_trainable(model):
        model.add_adapter(name, config)
    own = [p for key, p in model.named_parameters() if name in key.split(".")]
    for parameter in own:
        parameter.requires_grad_(trained)
    return own


def _save_adapter(model: Any, name: str, folder: Path) -> None:
    """One of several adapters, as PeftModel.from_pretrained reads it."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    config = copy.copy(model.peft_config[name])
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file(
        {key: weight.detach().cpu().contiguous() for key, weight in weights.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
