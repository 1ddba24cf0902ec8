"""A transformers decoder read as a function from packed sequences to hidden states."""

from typing import Any

import torch
from torch import Tensor

from trimtab.feedback.sequences import Sequences
from trimtab.policies.packing import NAME, Packing


class Trunk:
    """The decoder below the head of a transformers model, with or without a LoRA adapter.

    Sequences run packed, without padding, where the architecture allows it; this is tried on the
    model itself, so that an architecture that mixes tokens in another way than attention (a state
    space, a convolution) or with a soft cap runs padded instead.
    """

    def __init__(self, model: Any) -> None:
        # a PeftModel injects its layers into the very modules of the model that it wraps
        self.hf: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoder: Any = self.hf.base_model
        self.packed = self._packing_is_exact()

    @property
    def device(self) -> torch.device:
        return self.hf.device

    def hidden(self, sequences: Sequences) -> Tensor:
        """[N, H] the last hidden state of every token of the packed sequences."""
        return self._packed(sequences) if self.packed else self._padded(sequences)

    def _packed(self, sequences: Sequences) -> Tensor:
        # a mask of four dimensions is passed on as it is, which keeps transformers from building one
        no_mask = torch.empty(1, 1, 1, 1, device=sequences.tokens.device)
        out = self.decoder(
            input_ids=sequences.tokens[None],
            position_ids=sequences.positions[None],
            attention_mask=no_mask,
            use_cache=False,
            packing=Packing.of(sequences),
        )
        return out.last_hidden_state[0]

    def _padded(self, sequences: Sequences) -> Tensor:
        tokens, mask = sequences.padded()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = self.decoder(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)
        return out.last_hidden_state[mask]

    @torch.no_grad()
    def _packing_is_exact(self) -> bool:
        """Whether packed and padded hidden states agree on two short sequences of this model."""
        original = self.hf.config._attn_implementation
        if original == "flash_attention_2":
            return False
        was_training = self.hf.training
        self.hf.eval()
        vocabulary = self.hf.get_input_embeddings().num_embeddings
        ids = [(7 * i + 3) % vocabulary for i in range(9)]
        probe = Sequences.pack([(ids[:3], ids[3:5]), (ids[5:6], ids[6:9])], self.device)
        padded = self._padded(probe)
        try:
            self.hf.set_attn_implementation(NAME)
            packed = self._packed(probe)
        except (TypeError, ValueError, RuntimeError, IndexError):
            exact = False  # the architecture does not take packed rows: that is the answer asked for
        else:
            tolerance = 1e-4 if padded.dtype == torch.float32 else 5e-2
            exact = torch.allclose(packed, padded, rtol=tolerance, atol=tolerance * float(padded.abs().max()))
        if not exact:
            self.hf.set_attn_implementation(original)
        self.hf.train(was_training)
        return exact
