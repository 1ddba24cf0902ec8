"""TRL's trainers around a given model: each hands over the batch that it made and the loss of it."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from tests.models import gradients, letter_tokenizer

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


@contextlib.contextmanager
def silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
