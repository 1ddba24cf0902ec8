"""Scores are read at the last token by length, wherever padding stands and whatever its id is."""

import pytest
import torch
from tests.models import classifier, letter_tokenizer, pack, random_rows, reward_model
from tests.tiny import model_folder

from trimtab.policies.load import ModelConfig, load_reward_model
from trimtab.policies.reward_model import RewardModel

ROWS = random_rows(5, seed=1)


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Mistral", "GPT2", "Gemma2"])
def test_scores_equal_those_of_transformers_one_by_one(architecture: str) -> None:
    scorer = reward_model(architecture)
    with torch.no_grad():
        ours = scorer.scores(pack(ROWS))
        theirs = [scorer.model(input_ids=torch.tensor([[*p, *r]])).logits[0, 0] for p, r in ROWS]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=1e-5)


def test_padding_that_is_also_the_end_token_moves_nothing() -> None:
    scorer = reward_model()
    shared = RewardModel(classifier(), letter_tokenizer(pad_token="</s>"))
    shared.trunk.hf.config.pad_token_id = 1
    with torch.no_grad():
        torch.testing.assert_close(shared.scores(pack(ROWS)), scorer.scores(pack(ROWS)))


def test_a_language_model_gets_a_head_drawn_by_the_seed() -> None:
    config = ModelConfig(model=model_folder(), precision="fp32", device="cpu")
    first, again, other = (load_reward_model(config, seed=seed).trunk.hf.score.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.detach().std()) == pytest.approx(1 / 17**0.5, rel=0.4)  # N(0, 1 / (H + 1)), H = 16
