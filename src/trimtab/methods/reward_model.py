"""Reward models: from pairs (Bradley-Terry) and from rankings (Plackett-Luce)."""

from dataclasses import dataclass

from torch import Tensor

from trimtab.feedback.batches import Pairs, Rankings
from trimtab.methods.base import Method, Metrics, method
from trimtab.objectives.reward import bradley_terry, plackett_luce
from trimtab.policies.base import Scorer


@method("reward_model")
@dataclass(frozen=True, kw_only=True)
class RewardModelFromPairs(Method[Pairs]):
    """Bradley-Terry: the difference of two scores is the log-odds that people prefer the first."""

    stage = "reward model"
    data = "pair"
    trains = "reward model"
    learning_rate = 1e-4
    source = "Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, eq. 1"
    when = "Before reinforcement learning, from A/B choices; also to rank answers or to compare models."

    margin: bool = False
    """Subtract each pair's recorded margin, as Llama 2 does: surer pairs are pushed further apart."""
    center: float = 0.0
    """Weight of (chosen + rejected)^2, which keeps scores around zero (Eisenstein et al. 2023)."""

    def __post_init__(self) -> None:
        self.check(center=(0.0, 1e3))

    def loss(self, policy: Scorer, batch: Pairs) -> tuple[Tensor, Metrics]:
        chosen, rejected = batch.split(policy.scores(batch.sequences))
        losses = bradley_terry(chosen, rejected, batch.margin if self.margin else None)
        losses = losses + self.center * (chosen + rejected).square()
        return losses, {"accuracy": (chosen > rejected).float(), "margin": chosen - rejected}


@method("reward_ranking")
@dataclass(frozen=True, kw_only=True)
class RewardModelFromRankings(Method[Rankings]):
    """Plackett-Luce: the best is chosen among all, the second among the rest, and so on."""

    stage = "reward model"
    data = "ranking"
    trains = "reward model"
    learning_rate = 1e-4
    source = "Plackett 1975; Luce 1959; listwise as in Xia et al. 2008 (ListMLE)"
    when = "Before reinforcement learning, when people ranked several answers: B > A > D > C."

    def loss(self, policy: Scorer, batch: Rankings) -> tuple[Tensor, Metrics]:
        scores = batch.rows(policy.scores(batch.sequences))
        losses = plackett_luce(scores, batch.ranks, batch.present)
        better = (batch.ranks[:, :, None] < batch.ranks[:, None, :]) & (
            batch.present[:, :, None] & batch.present[:, None, :]
        )
        right = (scores[:, :, None] > scores[:, None, :])[better].float()
        return losses, {"accuracy": right}
