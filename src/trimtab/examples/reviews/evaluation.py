"""How well the base model predicts sentences."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab.examples.reviews import corpus
from trimtab.examples.reviews.data import Split, split_sentences


def loss_of(model: LlamaForCausalLM, batch: Tensor, reduction: str = "mean") -> Tensor:
    """Negative log-likelihood in nats of each next token of `batch` `[B, T]`, padding left out.

    No attention mask is needed: the padding is on the right, where no token that counts looks.
    """
    hidden = model.model(input_ids=batch.clamp(min=0)).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden)
    return F.cross_entropy(
        logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=corpus.IGNORED, reduction=reduction
    )


@torch.no_grad()
def perplexities(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: Split = "held_out"
) -> tuple[float, float]:
    """One half's perplexity per token and per word (split at spaces), `</s>` counted in both."""
    texts = [sentence.text for sentence in split_sentences(split)]
    rows = corpus.encode(tokenizer, texts, end=True)
    batches = corpus.Sentences(rows).batches(epoch=0, tokens=4096)
    total = sum(float(loss_of(model, batch, reduction="sum")) for batch in batches)
    tokens = sum(len(row) - 1 for row in rows)
    words = sum(len(text.split(" ")) + 1 for text in texts)
    return math.exp(total / tokens), math.exp(total / words)
