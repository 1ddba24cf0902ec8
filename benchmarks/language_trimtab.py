"""trimtab's side of `benchmarks.language`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks import language_work as work
from benchmarks.language_work import Meter, Row, Turn

from trimtab.feedback.batches import Table
from trimtab.feedback.records import Message, Record
from trimtab.methods import find
from trimtab.online import OnlineConfig, train_online
from trimtab.online_jobs import CriticConfig, build_critic, build_reference
from trimtab.policies.actor_critic import ActorCritic
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy, load_reward_model
from trimtab.reference import attach_reference
from trimtab.rollouts.collect import CollectConfig, Collector
from trimtab.rollouts.rewards import WeightedSum
from trimtab.train import RunConfig, Training, make_table, train

COMMON: dict[str, Any] = {
    "learning_rate": work.LEARNING_RATE,
    "schedule": "constant",
    "warmup": 0.0,
    "adam_eps": work.EPSILON,
    "max_grad_norm": work.MAX_NORM,
    "seed": work.SEED,
}


def run(turn: Turn, meter: Meter, rows: list[Row]) -> Any:
    """Trains; returns the model."""
    return (online if turn.job in work.ONLINE else offline)(turn, meter, rows)


def config(turn: Turn) -> ModelConfig:
    precision: Any = turn.precision
    return ModelConfig(turn.folder, lora_rank=turn.lora_rank, precision=precision, device=turn.device)


def offline(turn: Turn, meter: Meter, rows: list[Row]) -> Any:
    """Notes each step's loss, of ORPO the log odds (see `language_trl.noted`)."""
    training = started(turn, meter, rows)
    name = "log_odds_ratio" if turn.job == "orpo" else "loss"
    for metrics in training:
        meter.step(metrics[name])
    table, order = training.table, work.in_order(rows, turn)
    meter.tokens = sum(len(part) for i in order for r in table.examples[i].rows for part in table.rows[r])
    policy: Any = training.policy
    return policy.trunk.hf


def started(turn: Turn, meter: Meter, rows: list[Row]) -> Training:
    """A training on recorded feedback before its first step."""
    settings: dict[str, Any] = {"beta": work.BETA[turn.job]} if turn.job in work.BETA else {}
    if turn.job == "ipo":
        settings["per_token"] = True  # as TRL has it
    method: Any = find(turn.job)(**settings)
    meter.loading()
    load = load_reward_model if turn.job == "reward_model" else load_language_policy
    policy: Any = load(config(turn), seed=work.SEED)
    own: dict[str, Any] = {
        "max_length": turn.max_length,
        "batch_tokens": turn.batch_tokens,
        "batch_size": turn.batch,
    }
    run = RunConfig(steps=turn.steps, **COMMON, **own)
    table = make_table(method, records_of(turn.job, rows), policy.tokenizer, run)
    order = work.in_order(rows, turn)
    if turn.job == "kto":
        rotate(table, order, turn.batch)
    if method.needs_reference:
        reference(policy, table, order[: turn.batch], turn.batch_tokens, meter)
    return train(method, policy, table, run)


def reference(policy: LanguagePolicy, table: Table, first: list[int], most: int, meter: Meter) -> None:
    """Reference log-probs of the whole table, after a warm-up on the rows of the first step."""
    rows = [table.rows[row] for i in first for row in table.examples[i].rows]
    attach_reference(replace(table, rows=rows), policy, batch_tokens=most)
    with meter.computing_reference():
        cached = attach_reference(table, policy, batch_tokens=most)
    assert not cached, "TRIMTAB_CACHE must be an empty folder"


def rotate(table: Table, order: list[int], batch: int) -> None:
    """Mismatched pairs as TRL makes them: in each batch, every prompt with the response before its own."""
    table.rows = rows = list(table.rows)
    responses = [rows[example.rows[0]][1] for example in table.examples]
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        for i, other in zip(numbers, numbers[-1:] + numbers[:-1], strict=True):
            example = table.examples[i]
            rows[example.mismatched] = (list(rows[example.rows[0]][0]), list(responses[other]))


def records_of(job: str, rows: list[Row]) -> list[Record]:
    """The rows as the method takes them; thumbs go up for one row and down for the next."""
    prompts = [tuple(Message(**message) for message in row.prompt) for row in rows]
    if job in work.ONLINE:
        return [Record("prompt", prompt) for prompt in prompts]
    if job == "sft":
        return [Record("demonstration", p, (row.chosen,)) for p, row in zip(prompts, rows, strict=True)]
    if job == "kto":
        return [
            Record("thumbs", p, (row.rejected if i % 2 else row.chosen,), desirable=not i % 2)
            for i, (p, row) in enumerate(zip(prompts, rows, strict=True))
        ]
    return [Record("pair", p, (row.chosen, row.rejected)) for p, row in zip(prompts, rows, strict=True)]


def letters(prompts: Sequence[Any], responses: Sequence[str], columns: Any = None) -> list[float]:
    return [work.letters(text) for text in responses]


def online(turn: Turn, meter: Meter, rows: list[Row]) -> Any:
    ppo = {"clip": work.CLIP, "lam": work.LAM, "value_weight": work.VALUE_WEIGHT}
    kind: Any = find(turn.job)
    method = kind(beta=work.BETA[turn.job], **(ppo if turn.job == "ppo" else {}))
    meter.loading()
    policy = load_language_policy(config(turn), seed=work.SEED)
    policy.end_tokens = {turn.never}
    critic = build_critic(method, policy, config(turn), CriticConfig(), work.SEED)
    learner = ActorCritic(policy, critic)
    collect = CollectConfig(prompts=turn.prompts, samples=turn.samples, max_new_tokens=turn.new_tokens)
    rewards = WeightedSum({"letters": letters}, {"letters": 1.0})
    source = Collector(
        policy,
        records_of(turn.job, rows),
        rewards,
        collect,
        samples=turn.samples,
        max_length=turn.max_length,
        seed=work.SEED,
    )
    run = OnlineConfig(
        refreshes=turn.steps,
        epochs=work.EPOCHS if turn.job == "ppo" else 1,
        critic_learning_rate=work.HEAD_LEARNING_RATE,
        max_length=turn.max_length,
        batch_tokens=turn.batch_tokens,
        **COMMON,
    )
    for _ in train_online(method, learner, source, run, build_reference(learner, config(turn))):
        meter.step()
    lengths = [len(source.ids[i]) + turn.new_tokens for i in work.in_order(rows, turn)]
    meter.tokens = turn.samples * sum(lengths)
    return policy.trunk.hf
