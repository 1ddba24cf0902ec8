"""What a Collector asks, draws and has scored, collection by collection."""

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.experience import PROMPTS, learner, letters_e, source
from tests.models import letter_tokenizer

from trimtab.errors import UserError
from trimtab.feedback.records import Prompt, Record, as_conversation
from trimtab.policies.actor_critic import ActorCritic
from trimtab.rollouts.collect import CollectConfig, Collector
from trimtab.rollouts.rewards import WeightedSum
from trimtab.rollouts.rollout import Collection


@pytest.fixture(scope="module")
def policy() -> ActorCritic:
    return learner(critic=False)


def made(
    policy: ActorCritic, records: list[Record], *, max_length: int = 100, seed: int = 0, **options: Any
) -> Collector:
    """A Collector that asks all records at a time, 6 tokens an answer."""
    return Collector(
        policy.actor,
        records,
        WeightedSum({"e": letters_e}, {"e": 1.0}),
        CollectConfig(**{"prompts": len(records), "max_new_tokens": 6, **options}),
        samples=1,
        max_length=max_length,
        seed=seed,
    )


def asked(collection: Collection, samples: int) -> list[Prompt]:
    """The prompts that were newly answered, each once."""
    prompts = [sample.prompt for sample in collection.samples]
    groups = [prompts[i : i + samples] for i in range(0, len(prompts), samples)]
    assert all(group == [group[0]] * samples for group in groups)
    return [group[0] for group in groups]


def collected(collector: Collector, refreshes: int) -> list[Collection]:
    found = []
    for refresh in range(refreshes):
        found.append(collector.collect(refresh))
        collector.remember(found[-1].rollout)
    return found


@pytest.mark.parametrize(
    ("prompts", "mix", "new"),
    [(4, 0.0, [4] * 5), (3, 0.34, [3, 2, 2, 2]), (4, 0.5, [4, 2, 2, 2, 2]), (7, 0.0, [7] * 3)],
)
def test_every_prompt_has_its_turn_before_any_has_another(
    policy: ActorCritic, prompts: int, mix: float, new: list[int]
) -> None:
    collector = source(policy, prompts=prompts, mix=mix, samples=1, max_new_tokens=1)
    found = [asked(collection, 1) for collection in collected(collector, len(new))]
    assert [len(turn) for turn in found] == new
    turns = [prompt for turn in found for prompt in turn]
    rounds = [turns[i : i + len(PROMPTS)] for i in range(0, len(turns), len(PROMPTS))]
    assert all(sorted(whole) == sorted(PROMPTS) for whole in rounds[:-1])
    assert len(set(rounds[-1])) == len(rounds[-1])
    if len(rounds) > 3:
        assert len({tuple(whole) for whole in rounds[:-1]}) > 1  # each in an order of its own


def test_seed_and_refresh_say_what_is_answered(policy: ActorCritic) -> None:
    """However many collections came before; and no two of them share their random numbers."""
    texts = {
        (seed, refresh): [s.response for s in source(policy, seed=seed).collect(refresh).samples]
        for seed in (0, 1)
        for refresh in (0, 1, 2)
    }
    again = [[s.response for s in c.samples] for c in collected(source(policy), 3)]
    assert again == [texts[0, refresh] for refresh in range(3)]
    assert len({tuple(answers) for answers in texts.values()}) == 6


def test_no_stream_is_that_of_a_neighbouring_seed(policy: ActorCritic) -> None:
    """One prompt is asked each time, so that equal answers would tell of equal random numbers."""
    drawn = [
        made(policy, [Record("prompt", "a")], seed=seed, samples=2).collect(refresh).samples[1].response
        for seed in range(4)
        for refresh in range(4)
    ]
    assert len(set(drawn)) == 16


def test_half_of_the_answers_are_those_of_before(policy: ActorCritic) -> None:
    one, two = collected(source(policy, mix=0.5, samples=3), 2)
    assert one.rollout.fresh.tolist() == [True] * 12
    assert two.rollout.fresh.tolist() == [False] * 6 + [True] * 6
    assert two.rollout.group_size == 3 and two.rollout.size == 12
    before, now = groups(one), groups(two)
    assert [group in before for group in now] == [True, True, False, False]
    assert now[0] != now[1]
    assert len(two.samples) == 6  # what a person reads is new


def groups(collection: Collection) -> list[list[tuple[tuple[int, ...], float]]]:
    """Tokens and score of the answers to each prompt."""
    rollout = collection.rollout
    tokens = [tuple(row.tolist()) for row in rollout.inputs.tokens.split(rollout.inputs.lengths.tolist())]
    rows = list(zip(tokens, rollout.score.tolist(), strict=True))
    return [rows[i : i + rollout.group_size] for i in range(0, len(rows), rollout.group_size)]


def test_other_groups_are_kept_each_time(policy: ActorCritic) -> None:
    collector = source(policy, mix=0.5, samples=1)
    found = collected(collector, 9)
    places = []
    for before, now in pairwise(found):
        rows = [group[0][0] for group in groups(before)]
        places.append(tuple(rows.index(group[0][0]) for group in groups(now)[:2]))
    assert len(set(places)) > 3


def test_an_answer_ends_or_is_cut_off(policy: ActorCritic) -> None:
    """Recorded log-probs are the policy's own; the end token is the last of the answer."""
    policy.actor.end_tokens |= set(range(4, 14))
    rollout = source(policy, max_new_tokens=5, samples=4, temperature=0.7).collect(0).rollout
    policy.actor.end_tokens -= set(range(4, 14))
    ends = {1, *range(4, 14)}
    cut = 0
    for row, tokens in enumerate(rollout.inputs.tokens.split(rollout.inputs.lengths.tolist())):
        length = int(rollout.mask[row].sum())
        answer = tokens.tolist()[-length:]
        assert not ends & set(answer[:-1])
        assert rollout.ended[row].nonzero().tolist() == [[length - 1]]
        assert rollout.terminated[row].any() == (answer[-1] in ends)
        assert answer[-1] in ends or length == 5
        cut += answer[-1] not in ends
    assert 0 < cut < rollout.size
    now = policy.actor.logprobs(rollout.inputs, temperature=0.7)
    torch.testing.assert_close(rollout.old_logprobs, now.detach(), rtol=0, atol=1e-4)
    assert (rollout.longest, rollout.rewards.any()) == (5, False)


def test_each_reward_is_shown_and_their_weighted_sum_counts(policy: ActorCritic) -> None:
    seen: dict[str, Any] = {}

    def answer_length(prompts: Any, responses: Sequence[str], columns: Any = None) -> list[float]:
        seen.update(columns)
        return [float(len(text)) for text in columns["answer"]]

    records = [Record("prompt", p, columns={"answer": "x" * n}) for n, p in enumerate(PROMPTS)]
    collector = Collector(
        policy.actor,
        records,
        WeightedSum({"e": letters_e, "n": answer_length}, {"e": 2.0, "n": -1.0}),
        CollectConfig(prompts=3, max_new_tokens=6),
        samples=2,
        max_length=100,
        seed=0,
    )
    collection = collector.collect(0)
    for sample, score in zip(collection.samples, collection.rollout.score.tolist(), strict=True):
        n = PROMPTS.index(str(sample.prompt))
        e = sample.response.count("e") - 0.1 * len(sample.response)
        assert sample.parts == {"e": pytest.approx(e), "n": float(n)}
        assert sample.score == pytest.approx(2 * e - n) == pytest.approx(score)
    assert [len(values) for values in seen.values()] == [6]


@pytest.mark.parametrize(("bos", "expected"), [("<s>", "<s>cde"), ("<end>", "bcde")])
def test_a_long_prompt_keeps_its_end_and_the_token_that_begins_texts(
    bos: str, expected: str, policy: ActorCritic, caplog: pytest.LogCaptureFixture
) -> None:
    policy.actor.tokenizer = letter_tokenizer(bos_token=bos)
    records = [Record("prompt", "<s>abcde"), Record("prompt", "ab")]
    with caplog.at_level(logging.WARNING, logger="trimtab"):
        collector = made(policy, records, max_length=10)
    policy.actor.tokenizer = letter_tokenizer()
    found = [policy.tokenizer.decode(ids) for ids in collector.ids]
    assert found == [expected, "ab"]
    assert caplog.messages == ["1 of 2 prompts lost their beginning: they have over 4 tokens"]


@pytest.mark.parametrize("length", [6, 5])
def test_prompts_need_room(length: int, policy: ActorCritic) -> None:
    with pytest.raises(UserError, match="leaves no room for a prompt in --max-length"):
        made(policy, [Record("prompt", "ab")], max_length=length)


def test_a_conversation_without_a_template_gets_one() -> None:
    policy = learner(critic=False)
    collector = made(policy, [Record("prompt", as_conversation("hi"))])
    names = "".join(
        letter for letter in "\n\nHuman: hi\n\nAssistant:" if letter in letter_tokenizer().get_vocab()
    )
    assert policy.tokenizer.decode(collector.ids[0]) == "<s>" + names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 3}, "--top-k: answers drawn so"),
        ({"top_p": 0.5}, "--top-p: answers drawn so"),
        ({"top_k": 0, "biased_sampling": True}, "top_k is 0; it must be a number above 0"),
        ({"prompts": 0}, "prompts is 0; it must be a number above 0"),
        ({"samples": 0}, "samples is 0; it must be a number above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be a number above 0"),
        ({"generate_batch": 0}, "batch is 0; it must be a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan; it must be 0 or more"),
        ({"mix": -0.1}, "mix is -0.1; it must be from 0 to 0.99"),
    ],
)
def test_values_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CollectConfig(**options)
