"""Two-digit addition from a verifiable reward: do the online methods raise the accuracy on held-out sums?

    python -m benchmarks.addition [--out docs]

A small Llama learns from scratch by imitation (SFT), from demonstrations by somebody who knows how to add
but forgets four carries out of five: 57 + 86 becomes 33, 133, 43 or, rarely, 143. It imitates that as well,
and more imitation would not help. Then each method gets the same number of the model's own answers, scored
1 for the right sum and 0 for any other, without a leash to the start (beta 0). What is not set below is the
library's default.

Sums are held out with their mirror image: where 57+86 is, 86+57 is. An answer begins with `=`, so that
the verifier compares texts and not numbers, and has the units first, since a carry is known before the
digit that needs it: `57+86` is answered `=341`. Accuracy is the share of held-out sums that are right in
one answer drawn at temperature 1; greedy takes the most likely token instead.

`--out` writes the table into the blocks `<!-- measured: addition -->` of the docs in that folder.
"""

import argparse
import multiprocessing
import random
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab.allocator import keep_freed_memory
from trimtab.evaluate import evaluate
from trimtab.feedback.records import Record
from trimtab.methods import find
from trimtab.online import OnlineConfig, Refresh, train_online
from trimtab.policies.actor_critic import ActorCritic, head_critic
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy
from trimtab.rollouts.collect import CollectConfig, Collector
from trimtab.rollouts.rewards import load_rewards
from trimtab.terminal import quiet_libraries
from trimtab.train import RunConfig, make_table, train

# PPO makes four updates of each collection, the others one.
LEARNING_RATES = {"reinforce": 2e-3, "rloo": 2e-3, "grpo": 2e-3, "a2c": 2e-3, "ppo": 1e-3}
SEEDS = (0, 1, 2)
REWARD = "exact:answer"
LONGEST = 16  # tokens of a sum and its answer, with room for wrong answers
IMITATION = RunConfig(steps=500, batch_size=256, learning_rate=2e-3, warmup=0.05, max_length=LONGEST)
ANSWERS = CollectConfig(prompts=64, samples=8, max_new_tokens=6)
HEADINGS = {
    "en": (
        "method", "learning rate", "answers", "start", "end", "start, greedy", "end, greedy", "seconds",
    ),
    "zh": ("方法", "学习率", "回答数", "起点", "终点", "起点（贪心）", "终点（贪心）", "秒"),
}  # fmt: skip
CAPTION = {
    "en": "\nShare of {:,} held-out sums that are right in one answer drawn at temperature 1, and with the "
    "most likely tokens (greedy), for seeds {}; seconds of one run on one core. `make addition` prints it.",
    "zh": "\n{:,} 道保留的加法题中答对的比例：温度 1 下采样一个回答，以及每步取最可能的词元（贪心）；"
    "种子依次为 {}。秒数为单核上一次训练的时间。由 `make addition` 给出。",
}

Sum = tuple[int, int]


@dataclass(frozen=True)
class Setting:
    """What is added, how the start is trained, and what each method gets."""

    numbers: range = range(10, 100)
    held_out: float = 0.1  # share of the unordered pairs of numbers
    forget: float = 0.8  # chance that a demonstration drops a carry
    demonstrations: int = 8  # of each sum
    imitation: RunConfig = IMITATION
    collect: CollectConfig = ANSWERS
    refreshes: int = 80

    @property
    def answers(self) -> int:
        return self.refreshes * self.collect.prompts * self.collect.samples


@dataclass(frozen=True)
class Accuracy:
    """Shares of sums that are right: answers drawn at temperature 1, and greedy ones."""

    drawn: float
    greedy: float


@dataclass(frozen=True)
class Run:
    """One method from the start of one seed."""

    method: str
    seed: int
    start: Accuracy
    end: Accuracy
    seconds: float


def split(setting: Setting, seed: int) -> tuple[list[Sum], list[Sum]]:
    """Sums to learn from and held-out ones; no sum is held out from its mirror image."""
    pairs = [(a, b) for a in setting.numbers for b in setting.numbers if a <= b]
    random.Random(f"{seed} held out").shuffle(pairs)
    count = round(setting.held_out * len(pairs))
    return _both_ways(pairs[count:]), _both_ways(pairs[:count])


def _both_ways(pairs: Iterable[Sum]) -> list[Sum]:
    return [ordered for a, b in pairs for ordered in dict.fromkeys(((a, b), (b, a)))]


def written(a: int, b: int, forget: float, rng: random.Random) -> str:
    """The sum as it is added by hand, units first; each carry is dropped with probability `forget`."""
    digits, carry = "", 0
    while a or b or carry:
        column = a % 10 + b % 10 + carry
        digits += str(column % 10)
        carry = column // 10 if rng.random() >= forget else 0
        a, b = a // 10, b // 10
    return f"={digits}"


def demonstrations(sums: Sequence[Sum], setting: Setting, seed: int) -> list[Record]:
    """Every sum several times, each time with carries dropped anew."""
    rng = random.Random(f"{seed} demonstrations")
    return [
        Record("demonstration", f"{a}+{b}", (written(a, b, setting.forget, rng),))
        for _ in range(setting.demonstrations)
        for a, b in sums
    ]


def questions(sums: Sequence[Sum]) -> list[Record]:
    """Sums to answer, with the right answer as a column for the verifier."""
    return [Record("prompt", f"{a}+{b}", columns={"answer": f"={str(a + b)[::-1]}"}) for a, b in sums]


def untrained(seed: int) -> LanguagePolicy:
    """A Llama of two layers, which the carry needs, and one token a character."""
    letters = ["<s>", "</s>", *"0123456789+="]
    characters = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        max_position_embeddings=32,
        initializer_range=0.05,  # from 0.02, the usual, so narrow a model takes far longer to find the carry
        bos_token_id=0,
        eos_token_id=1,
    )
    return LanguagePolicy(LlamaForCausalLM(config), tokenizer)


def imitate(policy: LanguagePolicy, records: Sequence[Record], run: RunConfig) -> None:
    """SFT on the demonstrations."""
    method = find("sft")()
    for _ in train(method, policy, make_table(method, records, policy.tokenizer, run), run):
        pass


def learn(
    policy: LanguagePolicy, name: str, records: Sequence[Record], setting: Setting, seed: int
) -> list[Refresh]:
    """An online method on the model's own answers; what each refresh was like."""
    method = find(name)(beta=0.0)
    actor = ActorCritic(policy, head_critic(policy) if method.needs_critic else None)
    collector = Collector(
        policy,
        records,
        load_rewards([REWARD]),
        setting.collect,
        samples=method.samples,
        max_length=LONGEST,
        seed=seed,
    )
    run = OnlineConfig(
        refreshes=setting.refreshes, learning_rate=LEARNING_RATES[name], max_length=LONGEST, seed=seed
    )
    return list(train_online(method, actor, collector, run))


def accuracy(policy: LanguagePolicy, records: Sequence[Record], setting: Setting, seed: int) -> Accuracy:
    """Shares of right answers, one to each question."""
    sampling = setting.collect.sampling()
    reward = {REWARD: load_rewards([REWARD])}
    shares = []
    for drawn in (sampling, replace(sampling, temperature=0.0)):
        answers = evaluate(policy, records, drawn, reward, seed=seed)
        shares.append(sum(answer.rewards[REWARD] for answer in answers) / len(answers))
    return Accuracy(*shares)


def run_start(setting: Setting, seed: int, folder: Path) -> Accuracy:
    """Trains the start of a seed into `folder`."""
    learned, held_out = split(setting, seed)
    policy = untrained(seed)
    imitate(policy, demonstrations(learned, setting, seed), replace(setting.imitation, seed=seed))
    policy.save(folder)
    return accuracy(policy, questions(held_out), setting, seed)


def run_method(setting: Setting, name: str, seed: int, start: Accuracy, folder: Path) -> Run:
    """One method from the start in `folder`."""
    learned, held_out = split(setting, seed)
    policy = load_language_policy(ModelConfig(str(folder), precision="fp32", device="cpu"))
    began = time.perf_counter()
    learn(policy, name, questions(learned), setting, seed)
    seconds = time.perf_counter() - began
    return Run(name, seed, start, accuracy(policy, questions(held_out), setting, seed), seconds)


def run_all(setting: Setting, jobs: int) -> list[Run]:
    """Every method from the start of every seed, `jobs` at a time, each on one core."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the state of torch's threads
    with TemporaryDirectory() as name, ProcessPoolExecutor(jobs, context, _begin_worker) as pool:
        folders = {seed: Path(name) / str(seed) for seed in SEEDS}
        starts = {seed: pool.submit(run_start, setting, seed, folder) for seed, folder in folders.items()}
        futures: list[Future[Run]] = []
        for seed, start in starts.items():
            given = (seed, start.result(), folders[seed])
            futures += [pool.submit(run_method, setting, method, *given) for method in LEARNING_RATES]
        return [future.result() for future in futures]


def _begin_worker() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    quiet_libraries()


def table(runs: Sequence[Run], setting: Setting, language: str) -> str:
    """A row for each method as Markdown, one figure for each seed."""
    lines = ["| " + " | ".join(HEADINGS[language]) + " |", "|---" + "|---:" * 7 + "|"]
    for method, rate in LEARNING_RATES.items():
        own = [run for run in runs if run.method == method]
        cells = [
            find(method).__name__,
            f"{rate:g}",
            f"{setting.answers:,}",
            _percents(run.start.drawn for run in own),
            _percents(run.end.drawn for run in own),
            _percents(run.start.greedy for run in own),
            _percents(run.end.greedy for run in own),
            f"{sum(run.seconds for run in own) / len(own):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    held_out = len(split(setting, SEEDS[0])[1])
    return "\n".join(lines) + "\n" + CAPTION[language].format(held_out, ", ".join(map(str, SEEDS)))


def _percents(shares: Iterable[float]) -> str:
    """34 / 35 / 33 %"""
    return " / ".join(f"{share:.0%}".rstrip("%") for share in shares) + " %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the docs whose blocks are filled")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    setting = Setting()
    runs = run_all(setting, options.jobs)
    print(table(runs, setting, "en"))
    if options.out:
        from benchmarks.document import fill

        fill(
            lambda name, language: table(runs, setting, language) if name == "addition" else None, options.out
        )


if __name__ == "__main__":
    main()
