"""Token by token, with keys and values in place and with transformers' cache: the logits of a whole pass."""

from typing import Any

import pytest
import torch
from tests.models import causal_model, letter_tokenizer, policy
from torch import Tensor

from trimtab.feedback.sequences import Ids
from trimtab.policies.language import LanguagePolicy
from trimtab.rollouts.decoding import InPlace, SharedPrompts, Transformers, decoding

PROMPTS: list[Ids] = [[5, 6, 7, 8], [9], [10, 11, 12]]
SAMPLES = 2
TOLD = torch.tensor([[4, 13, 5], [6, 6, 9], [7, 14, 8], [15, 4, 4], [9, 5, 6], [12, 13, 14]])


def whole(model: Any, row: int, tokens: int) -> Tensor:
    """[V] logits after a row's prompt and its first tokens, by one pass without a cache."""
    ids = [*PROMPTS[row // SAMPLES], *TOLD[row, :tokens].tolist()]
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("stay", [[0, 2, 3, 5], [2, 3, 5]])  # of one prompt all rows leave
@pytest.mark.parametrize("way", [InPlace, SharedPrompts, Transformers])
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("Llama", {}), ("Llama", {"num_key_value_heads": 2}), ("Qwen3", {"num_key_value_heads": 1})],
)
@torch.no_grad()
def test_the_same_logits_as_in_one_pass(
    way: Any, architecture: str, settings: dict[str, Any], stay: list[int]
) -> None:
    learner = policy(architecture, **settings)
    # the third token needs more room
    model = Transformers(learner) if way is Transformers else way(learner, room=2)
    rows = torch.arange(len(TOLD))
    logits = model.read(PROMPTS, SAMPLES)
    for told in range(4):
        expected = torch.stack([whole(learner.model, int(row), told) for row in rows])
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        if told == 1:
            model.keep(torch.tensor(stay))
            rows = rows[torch.tensor(stay)]
        if told < 3:
            logits = model.step(TOLD[rows, told])


@torch.no_grad()
@pytest.mark.parametrize("in_place", [InPlace, SharedPrompts])
def test_in_bf16_the_two_ways_are_near(in_place: Any) -> None:
    learner = LanguagePolicy(causal_model("Llama"), letter_tokenizer(), autocast=torch.bfloat16)
    found = []
    with learner.autocasting():
        for way in (in_place(learner), Transformers(learner)):
            found.append([way.read(PROMPTS, SAMPLES), way.step(TOLD[:, 0]), way.step(TOLD[:, 1])])
    ours, theirs = (torch.stack(logits) for logits in found)
    assert 0 < float((ours - theirs).abs().max()) < 0.05 * float(theirs.abs().max())


@torch.no_grad()
def test_a_prompt_stands_there_once_for_all_its_samples_and_goes_with_the_last() -> None:
    model = SharedPrompts(policy("Llama"))
    model.read(PROMPTS, SAMPLES)
    assert [len(keys) for keys, _ in model.prompts] == [3] * len(model.prompts)
    model.keep(torch.tensor([2, 4, 5]))
    assert [len(keys) for keys, _ in model.prompts] == [2] * len(model.prompts)
    assert [keys.shape[0] for keys in model.keys] == [3] * len(model.prompts)


def test_what_is_not_of_the_family_takes_transformers_cache() -> None:
    assert type(decoding(policy("Llama"), 5)) is InPlace
    assert type(decoding(policy("Llama"), 5, samples=2)) is SharedPrompts
    assert isinstance(decoding(policy("GPT2"), 5), Transformers)
    assert isinstance(decoding(policy("Mistral", sliding_window=1000), 5), Transformers)
    assert isinstance(decoding(policy("Mistral", sliding_window=None), 5), InPlace)
    unpacked = policy("Llama")
    unpacked.trunk.without(["packing"])
    assert isinstance(decoding(unpacked, 5), Transformers)
