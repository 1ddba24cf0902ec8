"""The same world by the way that users go: a transformer, its own answers, the training loops."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from trimtab.feedback.batches import Example, Table
from trimtab.feedback.records import Prompt, Record
from trimtab.feedback.sequences import Sequences
from trimtab.methods.dpo import DPO
from trimtab.online import OnlineConfig, train_online
from trimtab.policies.actor_critic import ActorCritic, head_critic
from trimtab.policies.language import LanguagePolicy
from trimtab.rollouts.collect import CollectConfig, Collector
from trimtab.rollouts.rewards import WeightedSum, checked
from trimtab.rollouts.verifiers import Columns
from trimtab.train import RunConfig, train
from trimtab.truth.actor import online_method
from trimtab.truth.measured import figure
from trimtab.truth.optima import tilted
from trimtab.truth.world import (
    END,
    LONGEST,
    PROMPTS,
    RESPONSES,
    ROWS,
    VOCABULARY,
    Array,
    World,
    distribution,
    total_variation,
)

BOUND = 0.05  # what the chance in the answers and few steps leave
LETTERS = ".abc"
PROMPT_TEXTS = ["".join(LETTERS[token] for token in ROWS[i * len(RESPONSES)][0]) for i in range(PROMPTS)]


@dataclass(frozen=True)
class EndToEnd:
    """How far DPO came from the optimum, and what it was given."""

    parameters: int
    pairs: int
    before: float
    after: float

    @property
    def cells(self) -> tuple[str, ...]:
        return "dpo", str(self.pairs), figure(self.before), figure(self.after)

    @property
    def missed(self) -> bool:
        return not self.after <= BOUND


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


@dataclass(frozen=True)
class OnlineLlama:
    """Reinforcement learning of the tiny Llama, and how far it came: total variation to its optimum."""

    method: str
    learning_rate: float
    refreshes: int
    before: float = float("nan")
    after: float = float("nan")

    @property
    def cells(self) -> tuple[str, ...]:
        return self.method, str(self.refreshes), figure(self.before), figure(self.after)

    @property
    def missed(self) -> bool:
        return not self.after <= BOUND


ONLINE = [OnlineLlama("rloo", 5e-3, 120), OnlineLlama("ppo", 2e-3, 80)]
ANSWERS = 512  # a refresh


def learn_online(case: OnlineLlama, world: World, *, beta: float = 1.0) -> OnlineLlama:
    """The case with its figures: the Llama answers the prompts as text, and a function scores the texts."""
    policy, before = tiny_llama(seed=0), tiny_llama(seed=0)
    reference = distribution(before)
    optimum = tilted(reference, world.reward / beta)
    method = online_method(case.method, beta=beta)
    actor = ActorCritic(policy, head_critic(policy) if method.needs_critic else None)
    source = Collector(
        policy,
        [Record("prompt", prompt, ()) for prompt in PROMPT_TEXTS],
        WeightedSum({"world": checked(_Reward(world), "world")}, {"world": 1.0}),
        CollectConfig(prompts=ANSWERS // method.samples, max_new_tokens=LONGEST, generate_batch=ANSWERS),
        samples=method.samples,
        max_length=1024,
        seed=0,
    )
    run = OnlineConfig(refreshes=case.refreshes, learning_rate=case.learning_rate, warmup=0.05)
    for _ in train_online(method, actor, source, run, torch.no_grad()(before.logprobs)):
        pass
    after = total_variation(distribution(policy), optimum)
    return replace(case, before=total_variation(reference, optimum), after=after)


@dataclass(frozen=True)
class _Reward:
    """The world's reward as users write one: of texts. Three letters are a response that was cut off."""

    world: World

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns | None = None
    ) -> list[float]:
        texts = ["".join(LETTERS[token] for token in y if token != END) for y in RESPONSES]
        return [
            float(self.world.reward[PROMPT_TEXTS.index(str(p)), texts.index(r)])
            for p, r in zip(prompts, responses, strict=True)
        ]


def tiny_llama(seed: int) -> LanguagePolicy:
    """A Llama of two layers over the world's tokens, with weights large enough to have preferences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {letter: token for token, letter in enumerate(LETTERS)}
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
    of_letters = Tokenizer(models.WordLevel(letters))
    of_letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    of_letters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=of_letters, eos_token=LETTERS[END])
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
