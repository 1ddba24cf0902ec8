"""The methods of docs/adding-a-method.md do what the page says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.docs.pages import DOCS, blocks

from trimtab.cli.train import run
from trimtab.errors import UserError
from trimtab.policies.base import Evaluation
from trimtab.rollouts.rollout import Rollout


def test_the_method_of_the_docs_passes_its_own_test(hinge: Any) -> None:
    tests: dict[str, Any] = {}
    exec(blocks(DOCS / "adding-a-method.md", "python")[1], tests)
    names = [name for name in tests if name.startswith("test_")]
    assert len(names) == 2
    for name in names:
        tests[name]()


def test_the_online_method_of_the_docs_imitates_the_best_answers(best_of_n: Any) -> None:
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    rewards = torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.5, 0.5], [0.0, 1.0]])  # the last two are as good
    rollout = Rollout(
        inputs=None,
        mask=mask,
        old_logprobs=torch.zeros(4, 2),
        rewards=rewards,
        terminated=mask,
        ended=mask,
        score=rewards.sum(1),
        fresh=mask[:, 0],
        group_size=2,
    )
    rollout = best_of_n().advantages(rollout)
    assert rollout.advantages.tolist() == [[0, 0], [1, 0], [1, 1], [1, 1]]
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, 0.0], [-4.0, -5.0], [-6.0, -7.0]])
    policy: Any = SimpleNamespace(evaluate=lambda inputs: Evaluation(logprobs))
    losses, _ = best_of_n().loss(policy, rollout)
    assert losses.tolist() == [0, 0, 3, 4, 5, 6, 7]  # of the seven tokens
    assert best_of_n().units(rollout) == 7


def test_the_online_method_of_the_docs_is_refused_in_environments(best_of_n: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="best_of_n compares answers to the same prompt"):
        run(["best_of_n", "--env", "CartPole-v1", "--out", str(tmp_path / "run")])
