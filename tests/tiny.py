"""A tiny Llama with its tokenizer, and tiny files of feedback: what a user would bring, small."""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PROMPTS = [f"the {noun} is" for noun in ("film", "cast", "plot", "end", "music", "scene", "idea", "story")]
GOOD, BAD = " good , a joy .", " bad , a bore ."
_FOLDERS = TemporaryDirectory(prefix="trimtab-tests-")

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@cache
def model_folder(seed: int = 0) -> str:
    """A folder with a Llama of two layers and 16 dimensions, drawn by `seed`. Made once in a process."""
    folder = Path(_FOLDERS.name) / f"model-{seed}"
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([p + r for p in PROMPTS for r in (GOOD, BAD)] * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def pairs(prompts: Sequence[str] = tuple(PROMPTS)) -> list[dict[str, Any]]:
    return [{"prompt": p, "chosen": GOOD, "rejected": BAD} for p in prompts]


def thumbs(prompts: Sequence[str] = tuple(PROMPTS)) -> list[dict[str, Any]]:
    return [
        {"prompt": p, "completion": r, "label": r is GOOD} for p in prompts for r in (GOOD, BAD)
    ]


def demonstrations(prompts: Sequence[str] = tuple(PROMPTS)) -> list[dict[str, Any]]:
    return [{"prompt": p, "completion": GOOD} for p in prompts]


def scores(prompts: Sequence[str] = tuple(PROMPTS)) -> list[dict[str, Any]]:
    return [
        {"prompt": p, "response": r, "score": s} for p in prompts for r, s in ((GOOD, 2.0), (BAD, -1.0))
    ]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Writes the rows to a file; returns its name as the command line takes it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
