"""How near decoding comes to the speed at which memory can be read, beside transformers' generate.

    python -m benchmarks.decoding [--models 8m] [--batches 1 8 64] [--device cuda --precision bf16]

Every step reads all weights, and the keys and values of all rows: with few rows that is what its time goes
into. The limit is these bytes over what copying a large tensor reaches, half of it read and half written.
A step's time is that of `--new` tokens less that of one, which is the reading of the prompts; the two sides
take turns, and medians over the rounds are printed. The weights are random and in the given precision, no row
ends early, tokens are drawn at temperature 1, and each row has a prompt of its own.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.language_work import SHAPES, Meter, config_of
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from trimtab.policies.language import LanguagePolicy
from trimtab.rollouts.generate import Sampling, generate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEADINGS = {
    "en": "| model, precision, rows | trimtab: tokens/s | of limit | transformers | of limit | speed |",
    "zh": "| 模型、精度、行数 | trimtab：词元/秒 | 占上限 | transformers | 占上限 | 速度倍数 |",
}
RULE = "|---" + "|---:" * 5 + "|"


def main() -> None:
    """Measures every combination, and prints its row of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["8m"], choices=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64], help="rows decoded at once")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--document", action="store_true", help="write the table into docs/, too")
    options = parser.parse_args()
    if options.new < 2:
        parser.error("--new must be 2 or more: the first token is the prompt's")
    torch.set_num_threads(options.threads)
    speed = bandwidth(options.device)
    print("\n".join([f"{speed / 1e9:,.1f} GB/s\n", HEADINGS["en"], RULE]))
    lines = []
    for name in options.models:
        policy = random_policy(name, DTYPES[options.precision], options.device)
        for rows in options.batches:
            lines.append(row(f"{name}, {options.precision}, {rows}", policy, rows, speed, options))
            print(lines[-1], flush=True)
    if options.document:
        from benchmarks.document import fill

        fill(lambda block, of: "\n".join([HEADINGS[of], RULE, *lines]) if block == "decoding" else None)


def row(label: str, policy: LanguagePolicy, rows: int, speed: float, options: argparse.Namespace) -> str:
    """A line of the table."""
    prompts = torch.randint(3, 8_000, (rows, options.prompt), generator=torch.Generator().manual_seed(0))
    sides: list[Callable[[int], Any]] = [
        lambda new: generate(policy, prompts.tolist(), Sampling(max_new_tokens=new, batch_size=rows)),
        lambda new: transformers_answers(policy.model, prompts.to(options.device), new),
    ]
    found = [[step_seconds(side, options) for side in sides] for _ in range(options.rounds)]
    ours, theirs = map(statistics.median, zip(*found, strict=True))
    limit = step_bytes(policy.model, rows, options.prompt + options.new // 2) / speed
    cells = [f"{rows / ours:,.0f}", f"{limit / ours:.0%}", f"{rows / theirs:,.0f}", f"{limit / theirs:.0%}"]
    return "| " + " | ".join([label, *cells, f"{theirs / ours:.2f}"]) + " |"


def step_seconds(answer: Callable[[int], Any], options: argparse.Namespace) -> float:
    """Seconds a step, the reading of the prompts left out."""
    answer(2)  # what the first call prepares is in neither
    meter, times = Meter(options.device), list[float]()
    for new in (1, options.new):
        start = meter.now()
        answer(new)
        times.append(meter.now() - start)
    return (times[1] - times[0]) / (options.new - 1)


@torch.no_grad()
def transformers_answers(model: Any, prompts: torch.Tensor, new: int) -> Any:
    return model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        top_k=0,
        min_new_tokens=new,
        max_new_tokens=new,
        pad_token_id=0,
    )


def step_bytes(model: Any, rows: int, columns: int) -> int:
    """What one step must read: all weights, of the embedding only what is the head's; keys and values."""
    config, size = model.config, model.dtype.itemsize
    weights = sum(parameter.numel() for parameter in model.parameters())
    if not config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.numel()
    of_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.hidden_size
    return size * (weights + rows * columns * of_token // config.num_attention_heads)


def bandwidth(device: str) -> float:
    """Bytes a second that copying reads and writes: the best of ten."""
    source = torch.ones(2**28 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    meter, times = Meter(device), list[float]()
    for _ in range(10):
        start = meter.now()
        target.copy_(source)
        times.append(meter.now() - start)
    return 2 * source.nbytes / min(times)


def random_policy(name: str, dtype: torch.dtype, device: str) -> LanguagePolicy:
    """A model from its configuration, made where it is to run, whose end cannot be drawn."""
    from tokenizers import Tokenizer, models

    config = config_of(name, eos_token_id=None, pad_token_id=None, dtype=dtype)
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = Qwen2ForCausalLM(config)
    model.to(dtype).eval()
    words = Tokenizer(models.WordLevel({"</s>": 0}, unk_token="</s>"))
    policy = LanguagePolicy(model, PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>"))
    policy.end_tokens = {config.vocab_size}
    return policy


if __name__ == "__main__":
    main()
