"""Numbers of rows that come again, and that nothing changes by them."""

from typing import Any

import pytest
import torch
from tests.models import causal_model, gradients, letter_tokenizer, pack, random_rows
from torch import Tensor

from trimtab.objectives import logprobs
from trimtab.objectives.sizes import rounded_up, rounds_up
from trimtab.policies import trunk
from trimtab.policies.actor_critic import ActorCritic
from trimtab.policies.language import LanguagePolicy

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
    fused, blocked = trunk.fused_hidden, logprobs._BlockedLogprobs.forward

    def layers(decoder: Any, tokens: Tensor, *rest: Any) -> Tensor:
        counts["layers"].append(len(tokens))
        return fused(decoder, tokens, *rest)

    def head(ctx: Any, hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        counts["head"].append(len(hidden))
        return blocked(ctx, hidden, *rest)

    monkeypatch.setattr(trunk, "fused_hidden", layers)
    monkeypatch.setattr(logprobs._BlockedLogprobs, "forward", staticmethod(head))
    return counts


def test_batches_of_other_lengths_have_the_same_shapes(seen: dict[str, list[int]]) -> None:
    learner = policy()
    for read in (33, 40, 46):  # 47 take 64: a filler has two tokens at least
        learner.logprobs(pack([(list(range(3, 13)), [3] * (read - 10))]))
    assert seen["layers"][-3:] == [48, 48, 48]
    assert seen["head"][-3:] == [32, 32, 48]  # of responses of 23, 30 and 36


@pytest.mark.parametrize(("read", "rows"), [(32, 32), (47, 64), (48, 48)])
def test_a_size_already_gets_no_filler_and_a_filler_has_two_tokens(
    read: int, rows: int, seen: dict[str, list[int]]
) -> None:
    policy().logprobs(pack([(list(range(3, 13)), [3] * (read - 10))]))
    assert seen["layers"][-1] == rows


def test_without_rounding_the_tokens_are_all_that_is_read(seen: dict[str, list[int]]) -> None:
    learner = policy()
    learner.trunk.without(["rounded-sizes"])
    learner.logprobs(pack(ROWS[:1]))
    prompt, response = ROWS[0]
    assert seen["layers"][-1] == len(prompt) + len(response)
    assert seen["head"][-1] == len(response)


def rounding_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 the numbers can be compared."""
    monkeypatch.setattr(trunk, "rounds_up", lambda of: True)
    monkeypatch.setattr(logprobs, "rounds_up", lambda of: True)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "GPT2"])
def test_what_is_added_reaches_no_result(
    architecture: str, entropy: bool, seen: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused pass, transformers' modules with and without a window; some prompts are read once."""
    sequences = pack([*ROWS, (ROWS[0][0], [5, 6, 7]), (ROWS[1][0], [8, 1])])
    found = []
    for forced in (False, True):
        model = causal_model(architecture)
        learner = ActorCritic(LanguagePolicy(model, letter_tokenizer()))
        if forced:
            rounding_fp32(monkeypatch)
        given = learner.evaluate(sequences, entropy=entropy)
        flat = given.logprobs[sequences.mask]
        loss = (flat * torch.linspace(0.5, 1.5, len(flat))).sum()
        if entropy:
            loss = loss + given.entropy.sum()
        loss.backward()
        found.append((flat.detach(), gradients(learner.parameters())))
    scale = found[0][1].abs().max()
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1][1] / scale, found[0][1] / scale, rtol=0, atol=1e-5)
    before, after = seen["head"][-2:]
    assert after == rounded_up(before) > before


def test_a_long_filler_stays_within_the_positions_that_a_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2 with 128 positions: 8,200 tokens take a filler of 248."""
    rounding_fp32(monkeypatch)
    learner, row = LanguagePolicy(causal_model("GPT2"), letter_tokenizer()), ([3] * 50, [4] * 50)
    assert learner.trunk.hf.config.n_positions < rounded_up(8200) - 8200 == 248
    learner.trunk.shared = False
    with torch.no_grad():
        logprobs = learner.logprobs(pack([row] * 82))
        alone = learner.logprobs(pack([row]))
    torch.testing.assert_close(logprobs, alone.expand(82, -1), rtol=0, atol=1e-4)
