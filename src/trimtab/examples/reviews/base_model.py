"""Trains the example's base model from scratch: python -m trimtab.examples.reviews.base_model --help

A small Llama reads whole film reviews as running text and, more and more towards the end, single sentences
of the training half. Muon moves the matrices, AdamW the embedding and the norms. The learning rate and the
mixture follow the time spent, so that the run ends when its minutes are over, however busy the machine is.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab.examples.reviews import corpus
from trimtab.examples.reviews.data import split_sentences

STATE_SECONDS = 120  # between two evaluations, each of which saves the state


@dataclass(frozen=True)
class Recipe:
    """What decides the result, apart from the data."""

    minutes: float = 40.0
    learning_rate: float = 3e-3  # highest; warmed up, then linear to zero
    warmup: float = 0.02  # share of the time
    weight_decay: float = 0.1
    batch_tokens: int = 4096
    sentences_first: float = 0.15  # share of the steps that read sentences, until `mixing`
    sentences_last: float = 0.7  # the same share at the end
    mixing: float = 0.6  # share of the time after which the share of sentences rises
    seed: int = 0

    def rate(self, progress: float) -> float:
        """Learning rate when `progress` (0 to 1) of the time is over."""
        return self.learning_rate * min(progress / self.warmup, (1 - progress) / (1 - self.warmup))

    def sentence_share(self, progress: float) -> float:
        """Probability that a step reads sentences rather than running text."""
        rise = max(0.0, (progress - self.mixing) / (1 - self.mixing))
        return self.sentences_first + rise * (self.sentences_last - self.sentences_first)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of 3.3 million parameters, with the embedding tied to the head."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def loss_of(model: LlamaForCausalLM, batch: Tensor, reduction: str = "mean") -> Tensor:
    """Negative log-likelihood in nats of each next token of `batch` `[B, T]`, padding left out.

    No attention mask is needed: the padding is on the right, where no token that counts looks.
    """
    hidden = model.model(input_ids=batch.clamp(min=0)).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden)
    return F.cross_entropy(
        logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=corpus.IGNORED, reduction=reduction
    )


@torch.no_grad()
def perplexities(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> tuple[float, float]:
    """Held-out sentences' perplexity per token and per word (split at spaces), `</s>` counted in both."""
    texts = [sentence.text for sentence in split_sentences("held_out")]
    rows = corpus.encode(tokenizer, texts, end=True)
    batches = corpus.Sentences(rows).batches(epoch=0, tokens=4096)
    total = sum(float(loss_of(model, batch, reduction="sum")) for batch in batches)
    tokens = sum(len(row) - 1 for row in rows)
    words = sum(len(text.split(" ")) + 1 for text in texts)
    return math.exp(total / tokens), math.exp(total / words)


class Training:
    """The model, its optimisers and where they stand; saved and loaded as safetensors and JSON."""

    def __init__(self, recipe: Recipe, model: LlamaForCausalLM) -> None:
        self.recipe, self.model = recipe, model
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        decay = recipe.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            # This adjustment makes one learning rate right for both optimisers.
            torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=decay),
        ]
        self.at = {"step": 0, "seconds": 0.0, "tokens": 0, "running": 0, "sentences": 0}

    @property
    def progress(self) -> float:
        return min(1.0, self.at["seconds"] / (60 * self.recipe.minutes))

    def step(self, batch: Tensor) -> float:
        """One update on `batch` `[B, T]`; returns its loss. The caller counts the time."""
        self.model.zero_grad()
        loss = loss_of(self.model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.rate(self.progress)
            optimizer.step()
        self.at["step"] += 1
        self.at["tokens"] += batch.numel()
        return loss.item()

    def save(self, folder: Path) -> None:
        """Writes weights, optimiser states and counters; each file is replaced in one move."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{name}": value for name, value in self.model.named_parameters()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{key}": value for key, value in state.items()}
        # One file holds tensors and counters, so that they cannot come from different moments.
        save_file(tensors, folder / "state.tmp", metadata={"at": json.dumps(self.at)})
        (folder / "state.tmp").replace(folder / "state.safetensors")

    def load(self, folder: Path) -> None:
        """Takes up the state that `save` wrote."""
        from safetensors import safe_open

        path = folder / "state.safetensors"
        with safe_open(path, "pt") as file:
            self.at = json.loads(file.metadata()["at"])
        states: list[dict[int, dict[str, Tensor]]] = [{}, {}]
        parameters = dict(self.model.named_parameters())
        for name, value in load_file(path).items():
            kind, rest = name.split(".", 1)
            if kind == "model":
                parameters[rest].data.copy_(value)
            else:
                number, index, key = rest.split(".")
                states[int(number)].setdefault(int(index), {})[key] = value
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def endless(source: corpus.RunningText | corpus.Sentences, tokens: int, start: int) -> Iterator[Tensor]:
    """The source's batches, epoch after epoch, without the first `start`."""
    epoch = seen = 0
    while True:
        batches = source.batches(epoch, tokens)
        yield from batches[max(0, start - seen) :]
        seen, epoch = seen + len(batches), epoch + 1


def train(training: Training, tokenizer: PreTrainedTokenizerFast, documents: list[str], work: Path) -> None:
    """Trains until the recipe's minutes are over, saving the state in `work` at each evaluation."""
    recipe, at = training.recipe, training.at
    texts = [sentence.text for sentence in split_sentences("train")]
    sources = {
        "running": corpus.RunningText(corpus.encode(tokenizer, documents, end=False)),
        "sentences": corpus.Sentences(corpus.encode(tokenizer, texts, end=True)),
    }
    batches = {kind: endless(source, recipe.batch_tokens, at[kind]) for kind, source in sources.items()}
    saved_at = at["seconds"]
    while training.progress < 1:
        started = time.monotonic()
        coin = torch.rand(1, generator=torch.Generator().manual_seed(at["step"])).item()
        kind = "sentences" if coin < recipe.sentence_share(training.progress) else "running"
        loss = training.step(next(batches[kind]))
        at[kind] += 1
        at["seconds"] += time.monotonic() - started
        if at["seconds"] - saved_at > STATE_SECONDS or training.progress == 1:
            saved_at = at["seconds"]
            training.save(work)
            print(
                f"minute {at['seconds'] / 60:5.1f}  step {at['step']:5d}  {at['tokens'] / 1e6:6.2f}M tokens  "
                f"{at['tokens'] / at['seconds']:6.0f} tokens/s  loss {loss:.3f} ({kind})  "
                f"held-out perplexity {perplexities(training.model, tokenizer)[0]:.2f}",
                flush=True,
            )


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Trains the base model of the built-in example from scratch.")
    parser.add_argument("--documents", type=Path, default=Path("data/reviews/documents.jsonl.gz"))
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--work", type=Path, default=Path("runs/base-model"), help="goes on from its state")
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    options = parser.parse_args(arguments)
    recipe = Recipe(minutes=options.minutes, learning_rate=options.learning_rate)
    torch.manual_seed(recipe.seed)
    documents = corpus.read_documents(options.documents)
    tokenizer = corpus.train_tokenizer(documents + [s.text for s in split_sentences("train")])
    training = Training(recipe, new_model(tokenizer))
    if (options.work / "state.safetensors").exists():
        training.load(options.work)
        print(f"going on from step {training.at['step']} in {options.work}", flush=True)
    train(training, tokenizer, documents, options.work)


if __name__ == "__main__":
    main()
