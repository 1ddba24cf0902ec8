"""Trains the example's base model from scratch: python -m trimtab.examples.reviews.base_model --help

A small Llama reads whole film reviews as running text and, more and more towards the end, single sentences
of the training half. Muon moves the matrices, AdamW the embedding and the norms. The learning rate and the
mixture follow the time spent, so that the run ends when its minutes are over, however busy the machine is.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from trimtab.examples.reviews import corpus
from trimtab.examples.reviews.card import export
from trimtab.examples.reviews.data import split_sentences
from trimtab.examples.reviews.evaluation import loss_of, perplexities
from trimtab.examples.reviews.muon import Muon

STATE_SECONDS = 200  # between two evaluations, each of which saves the state


@dataclass(frozen=True)
class Recipe:
    """What decides the result, apart from the data."""

    minutes: float = 40.0
    learning_rate: float = 6e-3  # highest; warmed up, then linear to zero
    warmup: float = 0.02  # share of the time
    weight_decay: float = 0.1
    batch_tokens: int = 4096
    sentences_first: float = 0.3  # share of the steps that read sentences, until `mixing`
    sentences_last: float = 0.8  # the same share at the end
    mixing: float = 0.4  # share of the time after which the share of sentences rises
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


@dataclass
class Position:
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0  # spent in steps, evaluations left out
    tokens: int = 0
    running: int = 0  # batches of running text read
    sentences: int = 0  # batches of sentences read


class Training:
    """The model, its optimisers and where they stand; saved and loaded as safetensors and JSON."""

    def __init__(self, recipe: Recipe, model: LlamaForCausalLM) -> None:
        self.recipe, self.model = recipe, model
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        decay = recipe.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, weight_decay=decay),
            torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=decay),
        ]
        self.at = Position()

    @property
    def progress(self) -> float:
        return min(1.0, self.at.seconds / (60 * self.recipe.minutes))

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
        self.at.step += 1
        self.at.tokens += batch.numel()
        return loss.item()

    def save(self, folder: Path) -> None:
        """Writes weights, optimiser states and counters; each file is replaced in one move."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in self.model.named_parameters()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{key}": value for key, value in state.items()}
        # One file holds tensors and counters, so that they cannot come from different moments.
        save_file(tensors, folder / "state.tmp", metadata={"at": json.dumps(asdict(self.at))})
        (folder / "state.tmp").replace(folder / "state.safetensors")

    def load(self, folder: Path) -> None:
        """Takes up the state that `save` wrote."""
        path = folder / "state.safetensors"
        with safe_open(path, "pt") as file:
            self.at = Position(**json.loads(file.metadata()["at"]))
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
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )


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
    running_text = corpus.RunningText(corpus.encode(tokenizer, documents, end=False))
    sentences = corpus.Sentences(corpus.encode(tokenizer, texts, end=True))
    running_batches = endless(running_text, recipe.batch_tokens, at.running)
    sentence_batches = endless(sentences, recipe.batch_tokens, at.sentences)
    saved_at = at.seconds
    while training.progress < 1:
        started = time.monotonic()
        coin = torch.rand(1, generator=torch.Generator().manual_seed(at.step)).item()
        if coin < recipe.sentence_share(training.progress):
            loss = training.step(next(sentence_batches))
            at.sentences += 1
        else:
            loss = training.step(next(running_batches))
            at.running += 1
        at.seconds += time.monotonic() - started
        if at.seconds - saved_at > STATE_SECONDS or training.progress == 1:
            saved_at = at.seconds
            training.save(work)
            print(progress_line(training, tokenizer, loss), flush=True)


def progress_line(training: Training, tokenizer: PreTrainedTokenizerFast, loss: float) -> str:
    """Where the run stands, with the held-out perplexity per token."""
    at = training.at
    perplexity, _ = perplexities(training.model, tokenizer)
    return (
        f"minute {at.seconds / 60:5.1f}  step {at.step:5d}  {at.tokens / 1e6:6.2f}M tokens  "
        f"{at.tokens / at.seconds:6.0f} tokens/s  loss {loss:.3f}  held-out perplexity {perplexity:.2f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Trains the built-in base model from scratch.")
    parser.add_argument("--documents", type=Path, default=Path("data/reviews/documents.jsonl.gz"))
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--work", type=Path, default=Path("runs/base-model"), help="goes on from its state")
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    options = parser.parse_args(arguments)
    disable_progress_bar()
    recipe = Recipe(minutes=options.minutes, learning_rate=options.learning_rate)
    torch.manual_seed(recipe.seed)
    documents = corpus.read_documents(options.documents)
    tokenizer = corpus.train_tokenizer(documents + [s.text for s in split_sentences("train")])
    training = Training(recipe, new_model(tokenizer))
    if (options.work / "state.safetensors").exists():
        training.load(options.work)
        print(f"going on from step {training.at.step} in {options.work}", flush=True)
    train(training, tokenizer, documents, options.work)
    at = training.at
    facts = {
        "steps": at.step,
        "sentence_steps": at.sentences,
        "millions": at.tokens / 1e6,
        "minutes": at.seconds / 60,
        "documents": len(documents),
        "command": f"python -m trimtab.examples.reviews.base_model --documents {options.documents} "
        f"--out {options.out} --minutes {options.minutes:g}",
    }
    per_token, per_word = export(training.model, tokenizer, options.out, facts)
    print(f"{options.out}: held-out perplexity {per_token:.2f} per token, {per_word:.2f} per word")


if __name__ == "__main__":
    main()
