"""Memory of PPO's four models (actor, critic, reward model, reference), held in several ways.

    separate    four models; actor and critic trained in full
    LoRA        four models; actor and critic trained with an adapter each
    shared      one frozen trunk; actor, critic and reward model are adapters and heads on it
                once more with gradient checkpointing, since activations are most of what is left

python benchmarks/four_models.py [--hidden 768 --layers 12 --precision fp32 --device cpu ...]

Each way runs in a process of its own: it loads the four models, then makes one update of actor and
critic with AdamW on random sequences, with scores and reference log-probs. On a CPU the peak is that
of the process (VmHWM, the libraries included: first row), with the C library told to give freed memory
back at once, since the holes that it keeps can be larger than a model; on a GPU that of torch's allocator.
"""

import argparse
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from trimtab.feedback.sequences import Sequences
from trimtab.objectives.policy_gradient import ppo_clip, value_loss
from trimtab.policies.actor_critic import ActorCritic, model_critic
from trimtab.policies.adapters import adapter_critic, shared_reward_model
from trimtab.policies.language import LanguagePolicy
from trimtab.policies.load import ModelConfig, load_language_policy, load_reward_model, resolve_device
from trimtab.terminal import quiet_libraries

WAYS = {
    "none": "libraries alone",
    "separate": "four models, trained in full",
    "lora": "four models, actor and critic with LoRA",
    "shared": "one trunk with adapters and heads",
    "checkpointed": "the same, gradient checkpointing",
}
Context = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Four:
    """The four models, whoever holds them. `as_reference` is where the last one is itself."""

    policy: ActorCritic
    reward: Any
    reference: LanguagePolicy
    as_reference: Context = nullcontext


def load(way: str, folder: Path, options: argparse.Namespace) -> Four:
    def config(name: str, rank: int = 0) -> ModelConfig:
        return ModelConfig(
            str(folder / name),
            lora_rank=rank,
            precision=options.precision,
            device=options.device,
            gradient_checkpointing=way == "checkpointed",
        )

    rank = 0 if way == "separate" else options.rank
    actor = load_language_policy(config("base", rank))
    if way in ("shared", "checkpointed"):
        critic = adapter_critic(actor, config("base", rank), seed=0)
        reward = shared_reward_model(actor, str(folder / "adapter"))
        return Four(ActorCritic(actor, critic), reward, actor, actor.reference)
    critic = model_critic(load_reward_model(config("base", rank)))
    scorer = load_reward_model(config("adapter" if rank else "whole"), trainable=False)
    reference = load_language_policy(config("base"), trainable=False)
    return Four(ActorCritic(actor, critic), scorer, reference)


def update(four: Four, sequences: Sequences) -> None:
    """One step of PPO: a score on the last token, less the KL to the reference; returns without discount."""
    policy, mask = four.policy, sequences.mask
    with torch.no_grad():
        old = policy.evaluate(sequences)
        with four.as_reference():
            reference = four.reference.logprobs(sequences)
        rewards = -0.05 * (old.logprobs - reference)
        rewards[torch.arange(len(sequences)), sequences.response_lengths - 1] += four.reward.scores(sequences)
        returns = rewards.flip(-1).cumsum(-1).flip(-1)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-5)
    now = policy.evaluate(sequences)
    gain = ppo_clip(now.logprobs, old.logprobs, returns - old.values, clip=0.2)
    (gain + 0.1 * value_loss(now.values, old.values, returns))[mask].mean().backward()
    optimiser.step()


def measure(way: str, folder: Path, options: argparse.Namespace) -> None:
    """Prints millions of parameters held and trained, and the peak in GB after loading and an update."""
    device = resolve_device(options.device)
    import peft  # noqa: F401  (so that the libraries alone are all of them)

    four = None if way == "none" else load(way, folder, options)
    gc.collect()
    held = sum(p.numel() for p in gc.get_objects() if type(p) is nn.Parameter)
    loaded = peak(device)
    trained = sum(p.numel() for p in four.policy.parameters()) if four else 0
    if four:
        update(four, random_sequences(options).to(device))
    print(held / 1e6, trained / 1e6, loaded, peak(device))


def peak(device: torch.device) -> float:
    """GB that were in use at most until now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def random_sequences(options: argparse.Namespace) -> Sequences:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(options.vocabulary, (options.sequences, options.tokens), generator=generator)
    prompt = options.tokens // 4
    return Sequences.pack([(row[:prompt], row[prompt:]) for row in rows.tolist()])


def make_models(folder: Path, options: argparse.Namespace) -> None:
    """A random language model; a reward model on it trained in full, and one trained with LoRA."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    letters = Tokenizer(BPE(vocab={token: i for i, token in enumerate(special.values())}, merges=[]))
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=options.vocabulary,
            hidden_size=options.hidden,
            intermediate_size=options.hidden * 8 // 3,
            num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // 64,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    model.save_pretrained(folder / "base")
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters, **special).save_pretrained(folder / "base")
    for name, rank in (("whole", 0), ("adapter", options.rank)):
        config = ModelConfig(str(folder / "base"), lora_rank=rank, precision="fp32", device="cpu")
        load_reward_model(config).save(folder / name)


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {
        "hidden": 768, "layers": 12, "vocabulary": 32000, "rank": 16, "sequences": 8, "tokens": 128,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    options = options_of(sys.argv[1:])
    quiet_libraries()
    if options.way:
        return measure(options.way, options.folder, options)
    print("| models | parameters | trained | GB loaded | GB of an update | ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    first = None
    with TemporaryDirectory() as folder:
        make_models(Path(folder), options)
        for way, description in WAYS.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--folder", folder]
            out = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env=environment
            ).stdout
            held, trained, loaded, updated = (float(number) for number in out.split()[-4:])
            first = first or (updated if way != "none" else None)
            ratio = f"{updated / first:.2f}" if first else ""
            print(
                f"| {description} | {held:.0f} M | {trained:.1f} M | {loaded:.2f} | {updated:.2f} | {ratio} |"
            )


if __name__ == "__main__":
    main()
