"""A transformers decoder read as a function from packed sequences to hidden states."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import ran_out_of_memory
from trimtab.feedback.sequences import Sequences
from trimtab.objectives.sizes import rounded_up, rounds_up
from trimtab.policies.fused import Look, fused_hidden, is_of_family
from trimtab.policies.fused_lora import adapted
from trimtab.policies.packing import NAME, Packing, attend

# name -> attribute of Trunk
TECHNIQUES = {
    "packing": "packed",
    "shared-prompts": "shared",
    "fused": "fused",
    "fused-lora": "fused_lora",
    "frozen-head": "frozen_head",
    "rounded-sizes": "rounded",
}


class Trunk:
    """The decoder below the head of a transformers model, with or without a LoRA adapter.

    Sequences run packed, without padding, where the architecture allows it; this is tried on the
    model itself, so that an architecture that mixes tokens in another way than attention (a state
    space, a convolution) or with a soft cap runs padded instead. So is the fused forward pass.

    Attributes:
        packed, shared, fused: without padding; equal prompts read once; with `fused_hidden`.
        fused_lora: adapters in it by `adapted`.
        frozen_head: below a head that does not learn, logits are computed once (see `token_logprobs`).
        rounded: numbers of rows rounded up (see `sizes`). `without` leaves any of these out.
    """

    def __init__(self, model: Any) -> None:
        # a PeftModel injects its layers into the very modules of the model that it wraps
        self.hf: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoder: Any = self.hf.base_model
        self.shared = self.fused_lora = self.frozen_head = self.rounded = True
        self.fused = False
        self.packed = self._packing_is_exact()
        self.fused = self.packed and self._fusing_is_exact()

    @property
    def device(self) -> torch.device:
        return self.hf.device

    @property
    def shares(self) -> bool:
        """Whether equal prompts are read once."""
        return self.packed and self.shared

    def without(self, techniques: Iterable[str]) -> None:
        """Leaves out techniques, by their names in TECHNIQUES: slower, and in fp32 the same numbers."""
        for name in techniques:
            setattr(self, TECHNIQUES[name], False)
        self.fused = self.fused and self.packed

    def hidden(self, sequences: Sequences) -> Tensor:
        """[N, H] the last hidden state of every token of the packed sequences."""
        return self._packed(sequences) if self.packed else self._padded(sequences)

    def fused_pass(self, tokens: Tensor, positions: Tensor, look: Look) -> Tensor:
        """See `fused_hidden`; only where `fused` is true."""
        return fused_hidden(self.decoder, tokens, positions, look, adapted if self.fused_lora else _called)

    def _packed(self, sequences: Sequences) -> Tensor:
        count = len(sequences.tokens)
        packing = Packing.of(sequences, shared=self.shared)
        read = len(packing.read)
        weight = self.hf.get_input_embeddings().weight
        if self.rounded and rounds_up(weight) and rounded_up(read) != read:
            filler = [0] * (rounded_up(read + 2) - read)  # a prompt of one token, and a response
            sequences = Sequences.join([sequences, Sequences.pack([(filler[:1], filler[1:])])])
            packing = Packing.of(sequences, shared=self.shared)
        tokens, positions = sequences.tokens[packing.read], sequences.positions[packing.read]
        # those of a long filler could go beyond the model's last, or change how it rotates the others
        positions[read:] = 0
        # a transform such as forward differentiation knows no backward passes written by hand
        if self.fused and not torch._C._are_functorch_transforms_active():
            out = self.fused_pass(tokens, positions, partial(_attend, packing))
        else:
            # a mask of four dimensions is passed on as it is, which keeps transformers from building one
            out = self.decoder(
                input_ids=tokens[None],
                position_ids=positions[None],
                attention_mask=torch.empty(1, 1, 1, 1, device=tokens.device),
                use_cache=False,
                packing=packing,
            ).last_hidden_state[0]
        return out.index_select(0, packing.slots[:count])

    def _padded(self, sequences: Sequences) -> Tensor:
        tokens, mask = sequences.padded()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = self.decoder(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)
        return out.last_hidden_state[mask]

    @torch.no_grad()
    def _packing_is_exact(self) -> bool:
        """Whether packed and padded hidden states agree on short sequences of this model."""
        original = self.hf.config._attn_implementation
        if original == "flash_attention_2":
            return False

        def packed(probe: Sequences) -> Tensor:
            self.hf.set_attn_implementation(NAME)
            return self._packed(probe)

        exact = self._agree(self._padded, packed)
        if not exact:
            self.hf.set_attn_implementation(original)
        return exact

    @torch.no_grad()
    def _fusing_is_exact(self) -> bool:
        """Whether the fused forward pass and transformers' own agree."""

        def fused(probe: Sequences) -> Tensor:
            self.fused = True
            return self._packed(probe)

        return is_of_family(self.decoder) and self._agree(self._packed, fused)

    def _agree(self, known: Callable[[Sequences], Tensor], new: Callable[[Sequences], Tensor]) -> bool:
        """Whether two ways lead to the same hidden states, on three short sequences."""
        was_training = self.hf.training
        self.hf.eval()
        vocabulary = len(self.hf.get_input_embeddings().weight)
        ids = [(7 * i + 3) % vocabulary for i in range(9)]
        probe = Sequences.pack([(ids[:3], ids[3:5]), (ids[5:6], ids[6:9]), (ids[:3], ids[5:8])], self.device)
        expected = known(probe)
        try:
            found = new(probe)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            if ran_out_of_memory(error) is not None:
                raise
            return False  # the architecture does not take packed rows: that is the answer asked for
        finally:
            self.hf.train(was_training)
        tolerance = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 5e-2
        limit = tolerance * float(expected.abs().max())
        return torch.allclose(found.to(expected.dtype), expected, rtol=tolerance, atol=limit)


def _called(module: Any, x: Tensor) -> Tensor:
    return module(x)


def _attend(packing: Packing, attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as the fused forward pass asks for it."""
    dropout = attention.attention_dropout if attention.training else 0.0
    return attend(packing, query, key, value, attention.scaling, dropout=dropout)
