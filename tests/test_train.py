"""The loop: order, schedule, the optimiser's step, and what it refuses."""

import math
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch

from tests.models import letter_tokenizer, policy
from trimtab.errors import UserError
from trimtab.feedback.batches import Table
from trimtab.feedback.records import Message, Record
from trimtab.methods import find
from trimtab.train import (
    RunConfig,
    _order,
    make_table,
    parts_of,
    peak_learning_rate,
    schedule_factor,
    total_steps,
    train,
)

SFT = find("sft")()


def demonstrations(count: int = 6) -> Table:
    records = [Record("demonstration", "the film ", ("is " + "so " * i + "good",)) for i in range(count)]
    return make_table(SFT, records, letter_tokenizer(), RunConfig())


def weights(learner: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.parameters()]).clone()


def test_every_example_once_an_epoch_in_an_order_of_its_own() -> None:
    drawn = list(islice(_order(7, RunConfig(seed=3)), 21))
    epochs = [drawn[:7], drawn[7:14], drawn[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert drawn == list(islice(_order(7, RunConfig(seed=3)), 21))
    assert drawn != list(islice(_order(7, RunConfig(seed=4)), 21))


def testschedule_factor() -> None:
    def rates(**options: Any) -> list[float]:
        return [schedule_factor(RunConfig(**options), step, 10) for step in range(10)]

    assert rates(schedule="constant", warmup=0.2) == [0.5] + [1.0] * 9
    assert rates(schedule="linear", warmup=0.2) == pytest.approx([0.5, 1, *(1 - i / 8 for i in range(8))])
    cosine = [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert rates(schedule="cosine", warmup=0.2) == pytest.approx([0.5, 1, *cosine])
    assert rates(schedule="linear", warmup=0.0)[0] == 1.0


def test_steps_of_a_run() -> None:
    assert total_steps(RunConfig(epochs=2, batch_size=4), 10) == 5
    assert total_steps(RunConfig(epochs=1, batch_size=4), 9) == 3
    assert total_steps(RunConfig(epochs=0.01, batch_size=4), 9) == 1
    assert total_steps(RunConfig(epochs=5, steps=7), 9) == 7


def test_parts_hold_all_examples_within_their_tokens() -> None:
    table, learner = demonstrations(), policy()
    sizes = [sum(map(len, row)) for row in table.rows]
    parts = parts_of(table, list(range(6)), max(sizes) + 20, learner.device)
    assert len(parts) > 1
    assert sum(len(part.sequences) for part in parts) == 6
    assert all(len(part.sequences.tokens) <= max(sizes) + 20 for part in parts)
    assert len(parts_of(table, list(range(6)), 1, learner.device)) == 6


@pytest.mark.parametrize("batch_tokens", [1, 60, 10**6])
def test_a_step_is_that_of_adamw_on_the_mean_over_all_tokens(batch_tokens: int) -> None:
    table, learner, by_hand = demonstrations(), policy(), policy()
    run = RunConfig(steps=1, batch_size=6, batch_tokens=batch_tokens, learning_rate=1e-3, weight_decay=0.1)
    [metrics] = train(SFT, learner, table, run)
    optimiser = torch.optim.AdamW(by_hand.parameters(), lr=1e-3, weight_decay=0.1)
    nll = torch.cat([-by_hand.logprobs(table.sequences([i]))[0] for i in range(6)])
    nll.mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
    optimiser.step()
    assert metrics["loss"] == pytest.approx(float(nll.detach().mean()), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert metrics["nll"] == pytest.approx(metrics["loss"], abs=1e-5)
    # Adam's first step is the sign of the gradient: where that is next to nothing the sign is chance
    moved = (weights(learner) - weights(by_hand)).abs()
    assert float((moved > 1e-6).float().mean()) < 0.01


def test_the_same_seed_gives_the_same_weights() -> None:
    run = RunConfig(epochs=2, batch_size=2, learning_rate=1e-3)
    learners = [policy() for _ in range(3)]
    for learner, seed in zip(learners, (0, 0, 1), strict=True):
        assert len(list(train(SFT, learner, demonstrations(), replace(run, seed=seed)))) == 6
    assert torch.equal(weights(learners[0]), weights(learners[1]))
    assert not torch.equal(weights(learners[0]), weights(learners[2]))


def test_training_learns() -> None:
    losses = [
        m["loss"] for m in train(SFT, policy(), demonstrations(), RunConfig(steps=30, learning_rate=1e-2))
    ]
    assert losses[-1] < 0.5 * losses[0]


def test_dpo_moves_from_log_2_and_the_gap_grows() -> None:
    learner, dpo = policy(), find("dpo")(beta=0.5)
    records = [Record("pair", "the film ", ("is good", "is bad"))]
    table = make_table(dpo, records, letter_tokenizer(), RunConfig())
    with torch.no_grad():
        table.ref_logprobs = [learner.logprobs(table.sequences([i]))[0] for i in range(2)]
    steps = list(train(dpo, learner, table, RunConfig(steps=10, learning_rate=1e-3)))
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the ratio before the first step is 1
    assert steps[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert steps[-1]["margin"] > 0.1


def test_a_loss_that_is_not_a_number_is_refused_before_the_weights_are_lost() -> None:
    learner = policy()
    with torch.no_grad():
        learner.parameters()[0][letter_tokenizer()("t").input_ids[0]] = float("nan")  # its embedding
    before = weights(learner)
    with pytest.raises(UserError, match=r"step 1: .*not a finite number"):
        list(train(SFT, learner, demonstrations(), RunConfig(steps=1)))
    assert torch.equal(weights(learner).nan_to_num(), before.nan_to_num())


def test_learning_rate() -> None:
    learner = policy()
    assert peak_learning_rate(SFT, RunConfig(), learner) == SFT.learning_rate
    assert peak_learning_rate(SFT, RunConfig(learning_rate=3.0), learner) == 3.0
    learner.model.disable_adapter = None  # what makes it an adapter's policy
    assert peak_learning_rate(SFT, RunConfig(), learner) == pytest.approx(10 * SFT.learning_rate)


def test_conversations_get_a_template_where_there_is_none() -> None:
    tokenizer = letter_tokenizer()
    records = [Record("demonstration", (Message("user", "hello"),), ("good day",))]
    table = make_table(SFT, records, tokenizer, RunConfig())
    assert tokenizer.chat_template
    prompt, response = table.rows[0]
    assert tokenizer.decode(response).replace(" ", "") == "goodday</s>"
    assert prompt[0] == 0
