"""Reward models: a decoder with a scalar head on the response's last token."""

from torch import Tensor

from trimtab.feedback.sequences import Sequences
from trimtab.policies.model import TransformersModel


class RewardModel(TransformersModel):
    """A transformers sequence classifier with one output, read at the last token by length.

    transformers finds that token by looking for padding; where EOS and padding shared an id it
    would stop one token early, so the loader gives reward models a padding token of their own.
    """

    def scores(self, sequences: Sequences) -> Tensor:
        """One score for each response: [S] float32. Only differences mean something."""
        with self.autocasting():
            last = self.trunk.hidden(sequences)[sequences.last_index]
            return self.trunk.hf.score(last)[:, 0].float()
