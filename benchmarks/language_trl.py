"""TRL's side of `benchmarks.language`: its trainers with their defaults, but for what the task fixes."""

import tempfile
from typing import Any

import torch
import transformers
from benchmarks import language_work as work
from benchmarks.language_work import Meter, Row, Turn
from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer, TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

TRAINERS: dict[str, tuple[Any, Any]] = {
    "dpo": (DPOTrainer, DPOConfig),
    "ipo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "orpo": (ORPOTrainer, ORPOConfig),
    "reward_model": (RewardTrainer, RewardConfig),
    "sft": (SFTTrainer, SFTConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
    "rloo": (RLOOTrainer, RLOOConfig),
}


def run(turn: Turn, meter: Meter, rows: list[Row]) -> Any:
    """Trains; returns the model."""
    disable_progress_bars()
    kind, make_config = TRAINERS[turn.job]
    dataset = Dataset.from_list([row_of(turn.job, rows[i], i) for i in work.in_order(rows, turn)])
    tokenizer = AutoTokenizer.from_pretrained(turn.folder)
    with tempfile.TemporaryDirectory() as folder:
        args = make_config(output_dir=folder, **arguments(turn))
        kinds = transformers.Qwen2ForSequenceClassification, transformers.Qwen2ForCausalLM
        meter.loading()
        model = kinds[turn.job != "reward_model"].from_pretrained(turn.folder, dtype=turn.base_dtype)
        torch.manual_seed(work.SEED)  # adapters are drawn from it
        trainer = kind(
            model=model,
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=adapter(turn),
            callbacks=[Marks(meter)],
            **({"reward_funcs": reward} if turn.job in work.ONLINE else {}),
        )
        if turn.job in work.ONLINE:
            trainer.eos_token_ids = [turn.never]
            lengths = [len(prompt_ids(tokenizer, row)) + turn.new_tokens for row in dataset]
            meter.tokens = turn.samples * sum(lengths)
        else:
            watch(trainer, turn.job, meter)
        trainer.train()
    return model


def arguments(turn: Turn) -> dict[str, Any]:
    """What differs from the trainers' defaults."""
    settings: dict[str, Any] = {
        "max_steps": turn.steps,
        "per_device_train_batch_size": turn.batch,
        "learning_rate": work.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "adam_epsilon": work.EPSILON,
        "max_grad_norm": work.MAX_NORM,
        "bf16": turn.precision == "bf16",
        "use_cpu": turn.device == "cpu",
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": work.SEED,
    }
    if turn.job in work.BETA:
        settings["beta"] = work.BETA[turn.job]
    if turn.job in work.ONLINE:
        settings |= {
            "per_device_train_batch_size": turn.prompts * turn.samples,
            "num_generations": turn.samples,
            "max_completion_length": turn.new_tokens,
            "generation_kwargs": {"eos_token_id": turn.never},
            "shuffle_dataset": False,
        }
        return settings | ({"loss_type": "grpo"} if turn.job == "grpo" else {})
    if turn.job in ("dpo", "ipo"):
        settings["loss_type"] = ["sigmoid" if turn.job == "dpo" else "ipo"]
    return settings | {"train_sampling_strategy": "sequential", "max_length": turn.max_length}


def adapter(turn: Turn) -> Any:
    """The same adapters as trimtab's; None to train all weights."""
    if not turn.lora_rank:
        return None
    from trimtab.policies.load import ModelConfig, lora_config

    config = ModelConfig(turn.folder, lora_rank=turn.lora_rank)
    return lora_config(config, "SEQ_CLS" if turn.job == "reward_model" else "CAUSAL_LM")


def row_of(job: str, row: Row, number: int) -> dict[str, Any]:
    """The row as the trainer takes it; `number` says whether its thumb goes up or down."""

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    prompt = {"prompt": list(row.prompt)}
    if job in work.ONLINE:
        return prompt
    if job == "sft":
        return {**prompt, "completion": said(row.chosen)}
    if job == "kto":
        down = bool(number % 2)
        return {**prompt, "completion": said(row.rejected if down else row.chosen), "label": not down}
    return {**prompt, "chosen": said(row.chosen), "rejected": said(row.rejected)}


def prompt_ids(tokenizer: Any, row: dict[str, Any]) -> list[int]:
    text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text).input_ids)


def reward(completions: list[Any], **_: Any) -> list[float]:
    return [work.letters(turns[0]["content"]) for turns in completions]


class Marks(TrainerCallback):
    """Notes the end of every step."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.meter.step()


def watch(trainer: Any, job: str, meter: Meter) -> None:
    """Notes each step's loss and its tokens, padding left out."""
    original = trainer.training_step

    def step(model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> torch.Tensor:
        masks = ("attention_mask", "chosen_attention_mask", "rejected_attention_mask")
        meter.tokens += sum(int(inputs[name].sum()) for name in masks if name in inputs)
        loss = original(model, inputs, *more, **named)
        meter.losses.append(noted(trainer, job, loss))
        return loss

    trainer.training_step = step


def noted(trainer: Any, job: str, loss: torch.Tensor) -> float:
    """The loss; of ORPO the mean log odds of chosen against rejected, which do not depend on the prompt."""
    return float(trainer._stored_metrics["train"]["log_odds_chosen"][-1] if job == "orpo" else loss)
