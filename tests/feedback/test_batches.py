"""Packed sequences and typed batches: where each token and each judgement ends up."""

import random

import pytest
import torch
from tests.models import random_rows

from trimtab.feedback.batches import Example, Pairs, Rankings, Scored, Table, Thumbs, by_prompt
from trimtab.feedback.records import Kind
from trimtab.feedback.sequences import Sequences

ROWS = [((7, 8), (1, 2, 3)), ((9,), (4,)), ((7,), (5, 6))]


def table(kind: Kind, *examples: Example, reference: bool = False) -> Table:
    logprobs = [-torch.tensor(response, dtype=torch.float32) for _, response in ROWS]
    return Table(
        kind=kind, rows=list(ROWS), examples=list(examples), ref_logprobs=logprobs if reference else None
    )


def responses(sequences: Sequences) -> list[list[int]]:
    return [
        row[mask].tolist()
        for row, mask in zip(sequences.unpack(sequences.targets), sequences.mask, strict=True)
    ]


def test_sequences_know_their_places() -> None:
    s = Sequences.pack(ROWS)
    assert s.tokens.tolist() == [7, 8, 1, 2, 3, 9, 4, 7, 5, 6]
    assert s.lengths.tolist() == [5, 2, 3]
    assert s.starts.tolist() == [0, 5, 7]
    assert s.owner.tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert s.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2]
    assert s.response_index.tolist() == [2, 3, 4, 6, 8, 9]
    assert s.predicting_index.tolist() == [1, 2, 3, 5, 7, 8]
    assert s.targets.tolist() == [1, 2, 3, 4, 5, 6]
    assert s.last_index.tolist() == [4, 6, 9]
    assert s.mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert s.unpack(torch.arange(6.0)).tolist() == [[0, 1, 2], [3, 0, 0], [4, 5, 0]]
    tokens, mask = s.padded(pad=-1)
    assert tokens.tolist() == [[7, 8, 1, 2, 3], [9, 4, -1, -1, -1], [7, 5, 6, -1, -1]]
    assert mask.sum(-1).tolist() == [5, 2, 3]


def test_masks_come_from_lengths_not_from_ids() -> None:
    """A response may hold the padding's id, at its end or within."""
    s = Sequences.pack([((0, 0), (0, 5, 0)), ((0,), (0,))])
    assert s.mask.tolist() == [[True] * 3, [True, False, False]]
    assert s.targets.tolist() == [0, 5, 0, 0]


@pytest.mark.parametrize("rows", [[0], [2, 1], [1, 1, 0], [0, 1, 2]])
def test_selected_sequences_are_those_rows_packed(rows: list[int]) -> None:
    chosen = Sequences.pack(ROWS).select(torch.tensor(rows))
    assert unpacked(chosen) == [(list(ROWS[i][0]), list(ROWS[i][1])) for i in rows]


def test_joined_sequences_are_all_rows_packed() -> None:
    parts = [Sequences.pack(ROWS[:1]), Sequences.pack(ROWS[1:]), Sequences.pack(ROWS[:2])]
    joined = Sequences.join(parts)
    assert unpacked(joined) == [(list(p), list(r)) for p, r in (*ROWS, *ROWS[:2])]
    assert joined.mask.shape == (5, 3)


@pytest.mark.parametrize("seed", range(5))
def test_random_rows_selected_and_joined_are_rebuilt_in_plain_python(seed: int) -> None:
    rows = random_rows(12, seed=seed)
    draw = random.Random(seed)
    picks = [[draw.randrange(12) for _ in range(draw.randint(1, 8))] for _ in range(3)]
    packed = Sequences.pack(rows)
    joined = Sequences.join([packed.select(torch.tensor(pick)) for pick in picks])
    expected = [rows[i] for pick in picks for i in pick]
    assert unpacked(joined) == [(list(p), list(r)) for p, r in expected]
    place, states = 0, []
    for prompt, response in expected:
        states.append(list(range(place + len(prompt) - 1, place + len(prompt) + len(response))))
        place += len(prompt) + len(response)
    assert joined.state_index.tolist() == [index for of_row in states for index in of_row]
    longest = max(map(len, states))
    assert joined.unpack_states(joined.state_index + 1).tolist() == [
        [index + 1 for index in of_row] + [0] * (longest - len(of_row)) for of_row in states
    ]


def test_states_stand_before_each_token_and_after_the_last() -> None:
    """Row by row: the prompt's last token, then every token of the response."""
    s = Sequences.pack(ROWS)
    assert s.state_index.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert s.tokens[s.state_index].tolist() == [8, 1, 2, 3, 9, 4, 7, 5, 6]
    assert s.unpack_states(torch.arange(1.0, 10.0)).tolist() == [[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 0]]


def test_equal_prompts_have_equal_numbers_also_after_selecting_and_joining() -> None:
    s = Sequences.pack([((7, 8), (1,)), ((9,), (2,)), ((7, 8), (3, 4)), ((7,), (8, 5))])
    assert s.prompts.tolist() == [0, 1, 0, 2]
    assert s.select(torch.tensor([2, 3, 0])).prompts.tolist() == [0, 2, 0]
    joined = Sequences.join([s.select(torch.tensor([1])), s])
    assert len(set(joined.prompts[[0, 2]].tolist())) == 2  # a prompt of another part is not looked for
    assert joined.prompts[1] == joined.prompts[3] != joined.prompts[2]


def unpacked(sequences: Sequences) -> list[tuple[list[int], list[int]]]:
    """Prompts and responses by their lengths alone."""
    tokens, rows = sequences.tokens.tolist(), []
    for prompt, response in zip(
        sequences.prompt_lengths.tolist(), sequences.response_lengths.tolist(), strict=True
    ):
        rows.append((tokens[:prompt], tokens[prompt : prompt + response]))
        tokens = tokens[prompt + response :]
    assert tokens == []
    return rows


@pytest.mark.parametrize("rows", [[], [((), (1,))], [((1,), ())]])
def test_empty_prompts_and_responses_are_refused(rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Sequences.pack(rows)


def test_pairs_hold_the_chosen_first() -> None:
    data = table("pair", Example(rows=(0, 1), margin=0.5), Example(rows=(2, 0)), reference=True)
    batch = data.batch([1, 0])
    assert isinstance(batch, Pairs)
    assert responses(batch.sequences) == [[5, 6], [1, 2, 3], [1, 2, 3], [4]]
    assert batch.margin.tolist() == [0.0, 0.5]
    chosen, rejected = batch.split(torch.arange(4))
    assert (chosen.tolist(), rejected.tolist()) == ([0, 1], [2, 3])
    assert batch.size == 2
    expected = [[-5, -6, 0], [-1, -2, -3], [-1, -2, -3], [-4, 0, 0]]
    assert batch.ref_logprobs is not None and batch.ref_logprobs.tolist() == expected
    assert batch.log_ratios(torch.zeros(4, 3))[0].tolist() == [5, 6, 0]


def test_thumbs_carry_their_mismatched_rows() -> None:
    data = table(
        "thumbs",
        Example(rows=(0,), desirable=True, mismatched=2),
        Example(rows=(1,), mismatched=0),
        reference=True,
    )
    batch = data.batch([0, 1])
    assert isinstance(batch, Thumbs) and batch.mismatched is not None
    assert batch.desirable.tolist() == [True, False]
    assert responses(batch.sequences) == [[1, 2, 3], [4]]
    assert responses(batch.mismatched) == [[5, 6], [1, 2, 3]]
    assert batch.mismatched_ref_logprobs is not None
    assert batch.mismatched_ref_logprobs.tolist() == [[-5, -6, 0], [-1, -2, -3]]


def test_rankings_of_unequal_length() -> None:
    batch = table(
        "ranking", Example(rows=(0, 1, 2), ranks=(1, 0, 2)), Example(rows=(2, 1), ranks=(0, 1))
    ).batch([1, 0])
    assert isinstance(batch, Rankings)
    assert batch.ranks.tolist() == [[0, 1, 0], [1, 0, 2]]
    assert batch.present.tolist() == [[True, True, False], [True, True, True]]
    assert batch.rows(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).tolist() == [[1, 2, 0], [3, 4, 5]]
    assert batch.size == 2


def test_scores() -> None:
    batch = table("score", Example(rows=(1,), score=2.0, baseline=0.5), Example(rows=(0,), score=-1.0)).batch(
        [0, 1]
    )
    assert isinstance(batch, Scored)
    assert (batch.score.tolist(), batch.baseline.tolist()) == ([2.0, -1.0], [0.5, 0.0])


def test_log_ratios_without_a_reference_are_refused() -> None:
    batch = table("demonstration", Example(rows=(0,))).batch([0])
    with pytest.raises(ValueError, match="no reference"):
        batch.log_ratios(torch.zeros(1, 3))


def test_equal_prompts_meet_in_a_batch_and_count_once() -> None:
    a, b, c = [1] * 50, [2] * 10, [3] * 90
    rows = [(a, [0] * 5), (b, [0] * 5), (a, [0] * 6), (c, [0] * 30), (b, [0] * 4), (a, [0] * 40)]
    # tokens read: b 10 + 5 + 4 = 19; a 50 + 5 + 6 = 61, and 40 more would be 101; c 120, which is too much
    assert list(by_prompt(rows, 100)) == [[1, 4, 0, 2], [5], [3]]
    assert list(by_prompt(rows, 1000)) == [[1, 4, 0, 2, 5, 3]]
    assert list(by_prompt([], 100)) == []
    # unshared: 14 and 15 of b, 55 and 56 of a, 90, 120
    assert list(by_prompt(rows, 100, shared=False)) == [[4, 1, 0], [2], [5], [3]]


def test_many_answers_to_one_prompt_are_parted_where_they_would_be_too_much_with_it_each() -> None:
    # with the prompt in each, n rows have 52 n tokens: at most 2 x 100, so three at once
    assert list(by_prompt([([1] * 50, [0] * 2)] * 7, 100)) == [[6], [0, 1, 2], [3, 4, 5]]
