"""Tiny language models of several architectures, with random weights far from zero, and a tokenizer."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from trimtab.feedback.sequences import Ids, Sequences
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.reward_model import RewardModel

VOCABULARY = 40
LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "Llama": _LLAMA,
    "Qwen3": _LLAMA,
    "Mistral": {**_LLAMA, "sliding_window": 5},  # shorter than the sequences in the tests
    "Gemma2": {**_LLAMA, "sliding_window": 5, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "GPT2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128,
             "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
    "Mamba": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4,
              "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
}  # fmt: skip
_CAUSAL = {"GPT2": "GPT2LMHeadModel"}


def letter_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token a letter; `<s>` 0, `</s>` 1, `<pad>` 2, `<end>` 3."""
    names = ["<s>", "</s>", "<pad>", "<end>", *LETTERS]
    bpe = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    bpe.decoder = decoders.Fuse()
    defaults = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **{**defaults, **special})


def causal_model(architecture: str = "Llama", seed: int = 0, **settings: Any) -> Any:
    """A causal language model in fp32 whose distributions are far from uniform, without dropout."""
    name = _CAUSAL.get(architecture, f"{architecture}ForCausalLM")
    return _model(architecture, name, seed, settings)


def classifier(architecture: str = "Llama", seed: int = 0) -> Any:
    """A sequence classifier with one output."""
    return _model(architecture, f"{architecture}ForSequenceClassification", seed, {"num_labels": 1})


def policy(architecture: str = "Llama", seed: int = 0, **settings: Any) -> LanguagePolicy:
    return LanguagePolicy(causal_model(architecture, seed, **settings), letter_tokenizer())


def reward_model(architecture: str = "Llama", seed: int = 0) -> RewardModel:
    return RewardModel(classifier(architecture, seed), letter_tokenizer())


def alone(model: Any, prompt: Ids, response: Ids) -> torch.Tensor:
    """Log-probs of one response by transformers alone: no batch, no padding, all the logits. [R]."""
    ids = torch.tensor([[*prompt, *response]])
    logprobs = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(list(response))[:, None])[:, 0]


def random_rows(count: int, seed: int = 0, longest: int = 12) -> list[tuple[list[int], list[int]]]:
    """Prompts and responses of 1 to `longest` random letters; each response ends with 1."""
    generator = torch.Generator().manual_seed(seed)

    def letters(extra: int) -> list[int]:
        length = int(torch.randint(1, longest, (), generator=generator)) - extra
        return torch.randint(4, VOCABULARY, (max(1, length),), generator=generator).tolist()

    return [(letters(0), [*letters(1), 1]) for _ in range(count)]


def gradients(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """All gradients as one vector; zero where there is none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def pack(rows: Sequence[tuple[Ids, Ids]]) -> Sequences:
    return Sequences.pack(rows)


def _model(architecture: str, name: str, seed: int, settings: dict[str, Any]) -> Any:
    import transformers

    config = getattr(transformers, f"{architecture}Config")(**{**SETTINGS[architecture], **settings})
    for field in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        if hasattr(config, field):
            setattr(config, field, 0.0)
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
