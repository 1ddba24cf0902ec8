"""The same world by the way that users go: a transformer, sampled pairs, the training loop."""

from dataclasses import dataclass

import numpy as np
import torch

from trimtab.feedback.batches import Example, Table
from trimtab.feedback.sequences import Sequences
from trimtab.methods.dpo import DPO
from trimtab.policies.language import LanguagePolicy
from trimtab.train import RunConfig, train
from trimtab.truth.optima import tilted
from trimtab.truth.world import (
    PROMPTS,
    RESPONSES,
    ROWS,
    VOCABULARY,
    Array,
    World,
    distribution,
    total_variation,
)

BOUND = 0.05  # what the chance in the pairs and few steps leave


@dataclass(frozen=True)
class EndToEnd:
    """How far DPO came from the optimum, and what it was given."""

    parameters: int
    pairs: int
    before: float
    after: float


def end_to_end(world: World, *, beta: float = 1.0, pairs: int = 100_000, steps: int = 200) -> EndToEnd:
    """Trains a tiny Llama with DPO on pairs that it wrote itself and the world's rewards judged.

    The reference is the Llama as it was drawn: its distribution is enumerated, like everything here.
    """
    policy = tiny_llama(seed=0)
    reference = distribution(policy)
    table = _sampled_pairs(policy, reference, world, pairs)
    optimum = tilted(reference, world.reward / beta)
    run = RunConfig(steps=steps, batch_size=512, learning_rate=5e-3, warmup=0.05)
    for _ in train(DPO(beta=beta), policy, table, run):
        pass
    return EndToEnd(
        parameters=sum(p.numel() for p in policy.parameters()),
        pairs=len(table),
        before=total_variation(reference, optimum),
        after=total_variation(distribution(policy), optimum),
    )


def tiny_llama(seed: int) -> LanguagePolicy:
    """A Llama of two layers over the world's tokens, with weights large enough to have preferences."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {letter: token for token, letter in enumerate(".abc")}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(letters)), eos_token=".")
    return LanguagePolicy(LlamaForCausalLM(config), tokenizer)


def _sampled_pairs(policy: LanguagePolicy, reference: Array, world: World, count: int) -> Table:
    """Pairs of different responses drawn from the reference, chosen by a Bradley-Terry coin."""
    rng = np.random.default_rng(0)
    examples = []
    for prompt, q in enumerate(reference):
        drawn = rng.choice(len(RESPONSES), size=(count // PROMPTS, 2), p=q / q.sum())
        swap = rng.random(len(drawn)) > world.preference[prompt, drawn[:, 0], drawn[:, 1]]
        drawn[swap] = drawn[swap, ::-1]
        rows = prompt * len(RESPONSES) + drawn[drawn[:, 0] != drawn[:, 1]]
        examples += [Example(rows=(chosen, rejected)) for chosen, rejected in rows.tolist()]
    sequences = Sequences.pack(ROWS)
    with torch.no_grad():
        logprobs = policy.logprobs(sequences)[sequences.mask].split(sequences.response_lengths.tolist())
    return Table(kind="pair", rows=list(ROWS), examples=examples, ref_logprobs=list(logprobs))
