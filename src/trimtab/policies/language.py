"""Language models as policies: log-probs of responses, with and without the adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.feedback.sequences import Sequences
from trimtab.feedback.tokenise import end_tokens
from trimtab.objectives.distributions import categorical_entropy
from trimtab.objectives.logprobs import token_logprobs, token_logprobs_and_entropy
from trimtab.policies.model import TransformersModel, keeping_trainable


class LanguagePolicy(TransformersModel):
    """A causal language model that is trained, sampled from, or kept as a reference."""

    def __init__(self, model: Any, tokenizer: Any, autocast: torch.dtype | None = None) -> None:
        super().__init__(model, tokenizer, autocast)
        self.end_tokens = end_tokens(tokenizer, getattr(self.trunk.hf, "generation_config", None))
        self.head_is_linear = self._direct_head_is_exact()

    def logprobs(self, sequences: Sequences, temperature: float = 1.0) -> Tensor:
        """Log-probs of the response tokens: [S, R] float32, zero beyond a response's end.

        Args:
            temperature: of the softmax; that of the sampling, where the policy learns from its samples.
        """
        with self.autocasting():
            return self.logprobs_at(self.trunk.hidden(sequences), sequences, temperature)

    def logprobs_at(self, hidden: Tensor, sequences: Sequences, temperature: float = 1.0) -> Tensor:
        """`logprobs` from the trunk's hidden states [N, H]."""
        hidden = hidden[sequences.predicting_index]
        if self.head_is_linear:
            head = self.trunk.hf.get_output_embeddings()
            given, trunk = (hidden, head.weight, sequences.targets, head.bias), self.trunk
            flat = token_logprobs(
                *given, temperature=temperature, rounded=trunk.rounded, early=trunk.frozen_head
            )
        else:  # scaled, capped or adapted logits go through the model's own head
            flat = self._head(hidden, temperature).gather(-1, sequences.targets[:, None])[:, 0]
        return sequences.unpack(flat)

    def logprobs_and_entropy_at(
        self, hidden: Tensor, sequences: Sequences, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """`logprobs_at`, and the entropy of each token's distribution in nats: [S, R], [S, R]."""
        hidden = hidden[sequences.predicting_index]
        if self.head_is_linear:
            head = self.trunk.hf.get_output_embeddings()
            given, rounded = (hidden, head.weight, sequences.targets, head.bias), self.trunk.rounded
            flat, entropy = token_logprobs_and_entropy(*given, temperature=temperature, rounded=rounded)
        else:
            logprobs = self._head(hidden, temperature)
            flat = logprobs.gather(-1, sequences.targets[:, None])[:, 0]
            entropy = categorical_entropy(logprobs)
        return sequences.unpack(flat), sequences.unpack(entropy)

    def logits(self, sequences: Sequences, temperature: float = 1.0) -> Tensor:
        """The whole distribution of every response token as log-probs: [M, V], row by row."""
        with self.autocasting():
            hidden = self.trunk.hidden(sequences)[sequences.predicting_index]
            return self._head(hidden, temperature)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within it the adapter is off: the policy is its own reference, and costs no second model."""
        if not self.has_adapter:
            raise ValueError("only a policy with an adapter is its own reference")
        with keeping_trainable(self.model), self.model.disable_adapter(), torch.no_grad():
            yield

    def _head(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """[M, H] -> [M, V] log-probs, by the model's own path from hidden states to logits."""
        hf = self.trunk.hf
        logits = hf.get_output_embeddings()(hidden).float()
        config = hf.config
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if scale := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / scale
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return (logits / temperature).log_softmax(-1)

    @torch.no_grad()
    def _direct_head_is_exact(self) -> bool:
        """Whether the logits are just the output embedding times the hidden state.

        Raises ValueError if they are neither that nor what `_head` knows.
        """
        vocabulary = self.trunk.hf.get_input_embeddings().num_embeddings
        probe = Sequences.pack([([0, 1], [2 % vocabulary, 3 % vocabulary])], self.device)
        hidden = self.trunk.hidden(probe)[None]
        whole = self.trunk.hf(input_ids=probe.tokens[None], use_cache=False).logits.float()
        head = self.trunk.hf.get_output_embeddings()
        tolerance = 1e-4 if whole.dtype == hidden.dtype else 5e-2
        limit = tolerance * float(whole.abs().max())
        if type(head) is nn.Linear:
            direct = nn.functional.linear(hidden, head.weight, head.bias).float()
            if torch.allclose(direct, whole, rtol=0, atol=limit):
                return True
        if not torch.allclose(self._head(hidden), whole.log_softmax(-1), rtol=0, atol=limit):
            raise ValueError(f"{type(self.trunk.hf).__name__} computes its logits in a way not known here")
        return False
