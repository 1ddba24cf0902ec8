"""Numbers of rows that come again, and that nothing changes by them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models import causal_model, gradients, letter_tokenizer, pack, random_rows
from trimtab.objectives import logprobs
from trimtab.policies import trunk
from trimtab.policies.language import LanguagePolicy
from trimtab.sizes import rounded_up, rounds_up

ROWS = random_rows(40, seed=7)


def test_literal_sizes() -> None:
    pairs = {1: 16, 16: 16, 17: 32, 627: 640, 1000: 1008, 1024: 1024, 1025: 1056, 3523: 3584, 5000: 5120}
    assert {count: rounded_up(count) for count in pairs} == pairs


def test_few_sizes_and_little_added() -> None:
    counts = range(512, 8192)
    assert all(0 <= rounded_up(count) - count <= count / 32 for count in counts)
    assert all(rounded_up(rounded_up(count)) == rounded_up(count) for count in counts)
    assert len({rounded_up(count) for count in counts}) == 4 * 32 + 1


def test_only_bf16_on_a_cpu_is_rounded() -> None:
    assert rounds_up(torch.zeros(1, dtype=torch.bfloat16))
    assert not rounds_up(torch.zeros(1))
    assert not rounds_up(torch.zeros(1, dtype=torch.bfloat16, device="meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rounds_up(torch.zeros(1))


def policy(autocast: torch.dtype | None = torch.bfloat16) -> LanguagePolicy:
    return LanguagePolicy(causal_model("Llama"), letter_tokenizer(), autocast=autocast)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many rows went through the layers, and how many through the head."""
    counts: dict[str, list[int]] = {"layers": [], "head": []}
    fused, chunked = trunk.fused_hidden, logprobs._ChunkedLogprobs.forward

    def layers(decoder: Any, tokens: Tensor, *rest: Any) -> Tensor:
        counts["layers"].append(len(tokens))
        return fused(decoder, tokens, *rest)

    def head(ctx: Any, hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        counts["head"].append(len(hidden))
        return chunked(ctx, hidden, *rest)

    monkeypatch.setattr(trunk, "fused_hidden", layers)
    monkeypatch.setattr(logprobs._ChunkedLogprobs, "forward", staticmethod(head))
    return counts


def test_batches_of_other_lengths_have_the_same_shapes(seen: dict[str, list[int]]) -> None:
    learner = policy()
    for count in (29, 30, 31):
        learner.logprobs(pack(ROWS[:count]))
    sizes = [sum(len(p) + len(r) for p, r in ROWS[:count]) for count in (29, 30, 31)]
    assert len(set(sizes)) == 3
    assert all(rows == rounded_up(rows) > size for rows, size in zip(seen["layers"][-3:], sizes, strict=True))
    assert all(rows == rounded_up(rows) for rows in seen["head"][-3:])


def test_without_rounding_the_tokens_are_all_that_is_read(seen: dict[str, list[int]]) -> None:
    learner = policy()
    learner.trunk.without(["rounding"])
    learner.logprobs(pack(ROWS))
    assert seen["layers"][-1] == sum(len(p) + len(r) for p, r in ROWS)


def test_what_is_added_reaches_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32, where the numbers can be compared: rounded up all the same."""
    found = []
    for forced in (False, True):
        learner = policy(autocast=None)
        if forced:
            monkeypatch.setattr(trunk, "rounds_up", lambda of: True)
            monkeypatch.setattr(logprobs, "rounds_up", lambda of: True)
        sequences = pack(ROWS)
        flat = learner.logprobs(sequences)[sequences.mask]
        (flat * torch.linspace(0.5, 1.5, len(flat))).sum().backward()
        found.append((flat.detach(), gradients(learner.parameters())))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-5, atol=1e-5)
