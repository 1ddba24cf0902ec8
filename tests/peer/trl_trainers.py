"""TRL's trainers around a given model: each hands over the batch that it made and the loss of it."""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from tests.models import gradients, letter_tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

disable_progress_bars()


def trainer(
    kind: Any, config: Any, model: Any, rows: list[dict[str, Any]], folder: Path, **options: Any
) -> Any:
    """A trainer of one batch of all rows, in fp32 on the CPU, that writes and reports nothing."""
    reference = {name: options.pop(name) for name in ("ref_model",) if name in options}
    args = config(
        output_dir=str(folder),
        per_device_train_batch_size=len(rows),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        max_length=64,
        **options,
    )
    with silence():
        return kind(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=letter_tokenizer(),
            **reference,
        )


def batch_of(trainer: Any) -> dict[str, Any]:
    """The rows in their order, collated as for a training step."""
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])


def loss_and_gradient(trainer: Any, batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """The trainer's own loss of the batch, and its gradient for all weights as one vector."""
    trainer.model.train()
    trainer.model.zero_grad()
    with silence():
        loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return float(loss.detach()), gradients(list(trainer.model.parameters()))


@dataclass(frozen=True)
class Step:
    """An optimiser step: its loss, the gradient of all weights, [B] advantages in the order of the rows, the
    share of the ratios that were clipped, and the numbers of the rows in each micro-batch of the collection.
    """

    loss: float
    gradient: Tensor
    advantages: Tensor
    clipped: float
    parts: list[Tensor]


def online_trainer(
    kind: Any,
    config: Any,
    *,
    model: Any,
    reference: Any,
    rows: list[dict[str, Any]],
    folder: Path,
    **options: Any,
) -> Any:
    """A GRPO or RLOO trainer to whose prompts the model answers what the rows say.

    Args:
        reference: its weights are what the trainer loads where it wants the model of the beginning.
        rows: `prompt`, `answer` (token ids) and `score`; the answers to a prompt stand together. All are one
            generation, of one micro-batch if the options name no other size, that serves for two updates.
    """
    with silence():
        reference.save_pretrained(folder / "reference")
    model.config._name_or_path = str(folder / "reference")
    answers = _padded(rows)
    model.generate = lambda input_ids, **_: torch.cat([input_ids, answers], 1)
    settings = {
        "per_device_train_batch_size": len(rows),
        "max_completion_length": answers.shape[1],
        "num_iterations": 2,
        "beta": 0.0,
        **options,
    }
    args = config(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    with silence():
        return kind(
            model=model,
            reward_funcs=given_score,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=letter_tokenizer(),
        )


def given_score(score: list[float], **_: Any) -> list[float]:
    return score


def second_update(trainer: Any, rows: list[dict[str, Any]], move: Callable[[Any], object]) -> Step:
    """The second pass over the answers, whose log-probs the first took note of; in between `move` changes the
    model, so that no ratio is 1. Training steps are the trainer's own; no optimiser moves a weight.
    """
    args = trainer.args
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    with silence():
        for _ in range(args.steps_per_generation):
            trainer.training_step(trainer.model, rows, None)
        trainer.model.zero_grad()
        move(trainer.model)
        losses = [
            trainer.training_step(trainer.model, rows, None) for _ in range(args.gradient_accumulation_steps)
        ]
    return Step(
        float(torch.stack(losses).sum()),
        gradients(list(trainer.model.parameters())),
        torch.tensor(list(trainer._logs["advantages"])),
        trainer._metrics["train"]["clip_ratio/region_mean"][-1],
        [_numbers(micro_batch, rows) for micro_batch in trainer._buffered_inputs],
    )


def _padded(rows: list[dict[str, Any]]) -> Tensor:
    """[B, R] the answers as generation leaves them."""
    pad = letter_tokenizer().pad_token_id
    return pad_sequence([torch.tensor(row["answer"]) for row in rows], True, pad)


def _numbers(micro_batch: dict[str, Tensor], rows: list[dict[str, Any]]) -> Tensor:
    """Which rows the trainer, which shuffles them, has put here; all answers must be different."""
    answers = _padded(rows)
    return torch.cat([(answers == ids).all(1).nonzero()[:, 0] for ids in micro_batch["completion_ids"]])


@contextlib.contextmanager
def silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
