"""How the cost of training grows: with the prompt, the response, the vocabulary, the group and the file.

    python -m benchmarks.growth [--points prompt group ...] [--threads 1] [--out runs/growth] [--document]

prompt, response, vocabulary    a step of DPO on 4 pairs of 64 and 64 tokens, with a vocabulary of 8,192
group                           an update of GRPO on answers of 64 tokens to one prompt of 512
records                         a file of pairs: reading, tokenising, and the first step, of ORPO on 32 pairs;
                                with a million of them within 6 minutes and 1.5 GB

`records` trains the built-in model, the others the 8m of `language_work.SHAPES` and random weights, in fp32.
A step is backward pass, clipping and AdamW on one batch of random tokens, which is not cut into parts; the
log-probs of reference and old policy are given. Seconds: the median of 3 steps after a warm-up. Memory: the
process's peak less what it held before the model was built, or the file read. Every size is a process, and a
line in OUT/results.jsonl; what is there is not repeated. A file that is not within its bounds is given up.
"""

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.language_work import SHAPES, status

SIZES = {
    "prompt": [64, 128, 256, 512, 1024, 2048],
    "response": [64, 128, 256, 512, 1024],
    "vocabulary": [8_192, 32_768, 131_072],
    "group": [1, 2, 4, 8, 16, 32],
    "records": [1_000, 10_000, 100_000, 1_000_000],
}
PHASES = ("reading (s)", "tokenising (s)", "first step (s)")
CURVES = dict.fromkeys(SIZES, ("seconds",)) | {"group": ("seconds", "seconds an answer"), "records": PHASES}
PAIRS, TOKENS = 4, 64
MOST_BYTES, MOST_SECONDS = 1.5 * 10**9, 360  # of a file, however long it is
WORDS = {
    "en": {
        "prompt": "prompt tokens", "response": "response tokens", "group": "answers in a group",
        "records": "pairs in a file",
    },
    "zh": {
        "prompt": "提示词元数", "response": "回答词元数", "vocabulary": "词表大小", "group": "每组回答数",
        "records": "文件中的偏好对数", "seconds": "秒", "seconds an answer": "每个回答的秒数",
        "reading (s)": "读取（秒）", "tokenising (s)": "分词（秒）", "first step (s)": "第一步（秒）",
        "over 6 minutes": "超过 6 分钟", "over 1.5 GB": "超过 1.5 GB",
    },
}  # fmt: skip
Line = dict[str, Any]
Lines = dict[str, list[Line]]  # point -> its lines, by size, if there are any


def main() -> None:
    """Runs what is missing, prints the tables and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--points", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    parser.add_argument("--document", action="store_true", help="write tables and figure into docs/, too")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one[0], int(options.one[1]), options.threads)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.jsonl"
    done = {(line["point"], line["size"]) for of in results(file, options.threads).values() for line in of}
    for left in ((point, size) for point in options.points for size in SIZES[point]):
        if left not in done:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(child(*left, options.threads))
    found = results(file, options.threads)
    print(tables(found, "en"))
    draw(found, options.out / "growth.png")
    if options.document:
        from benchmarks.document import DOCS, fill

        fill(lambda name, language: tables(found, language) if name == "growth" else None)
        draw(found, DOCS / "growth.png")


def results(file: Path, threads: int) -> Lines:
    """The lines of the file with this many threads."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    lines = sorted((line for line in lines if line["threads"] == threads), key=lambda line: line["size"])
    found = {point: [line for line in lines if line["point"] == point] for point in SIZES}
    return {point: of for point, of in found.items() if of}


def child(point: str, size: int, threads: int) -> str:
    """The line of a process of its own. Raises SystemExit with its last words if it fails."""
    settings = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    settings |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "benchmarks.growth", "--one", point, str(size), "--threads", str(threads)]
    done = subprocess.run(words, env=os.environ | settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{point}, {size}: status {done.returncode}\n{done.stderr[-2000:]}")
    print(line := done.stdout.splitlines()[-1], flush=True)
    return line + "\n"


def one(point: str, size: int, threads: int) -> Line:
    """What this process measures; `before` is what it holds when the counting of memory begins."""
    from trimtab.allocator import keep_freed_memory

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    keep_freed_memory()
    line: Line = {"point": point, "size": size, "threads": threads}
    (records if point == "records" else steps)(line)
    line["MB"] = (status("VmHWM") - line.pop("before")) / 1e6
    return line


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    start, result = time.perf_counter(), function(*arguments)
    return time.perf_counter() - start, result


def steps(line: Line) -> None:
    """A step of DPO, or of GRPO on one group."""
    from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM

    from trimtab.methods import find
    from trimtab.policies.actor_critic import ActorCritic
    from trimtab.policies.language import LanguagePolicy
    from trimtab.policies.load import load_tokenizer, resolve_model
    from trimtab.train import backward

    vocabulary, *shape = SHAPES["8m"]
    grpo = line["point"] == "group"
    sizes = {"prompt": 512 if grpo else TOKENS, "response": TOKENS, "vocabulary": vocabulary}
    sizes[line["point"]] = line["size"]
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    settings: Any = dict(zip([*names.split(), "tie_word_embeddings"], shape, strict=True))
    method, tokenizer = find("grpo" if grpo else "dpo")(), load_tokenizer(resolve_model("reviews"))
    line["before"] = status("VmRSS")
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=sizes["vocabulary"], **settings))
    policy: Any = LanguagePolicy(model.train(), tokenizer)
    policy = ActorCritic(policy) if grpo else policy
    optimiser = torch.optim.AdamW(policy.parameters(), lr=method.learning_rate, fused=True)

    def step() -> None:
        backward(method, policy, [batch(sizes)])
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    line["seconds"] = statistics.median([timed(step)[0] for _ in range(4)][1:])
    if grpo:
        line["seconds an answer"] = line["seconds"] / line["size"]


def batch(sizes: dict[str, int]) -> Any:
    """Random pairs, or answers to one prompt. Reference and old policy find all tokens equally likely."""
    from trimtab.feedback.batches import Pairs
    from trimtab.feedback.sequences import Sequences
    from trimtab.rollouts.rollout import Rollout

    def tokens(name: str) -> list[int]:
        return torch.randint(sizes["vocabulary"], (sizes[name],)).tolist()

    group = sizes.get("group", 0)
    prompts = [tokens("prompt") for _ in range(1 if group else PAIRS)] * (group or 2)
    rows = Sequences.pack([(prompt, tokens("response")) for prompt in prompts])
    even = torch.full(rows.mask.shape, -math.log(sizes["vocabulary"]))
    if not group:
        return Pairs(sequences=rows, ref_logprobs=even, margin=torch.zeros(PAIRS))
    columns: Any = dict.fromkeys(("rewards", "terminated", "ended", "score", "fresh"))  # which no loss reads
    columns |= {"mask": rows.mask, "advantages": torch.randn(group, 1).expand_as(even)}
    return Rollout(inputs=rows, old_logprobs=even, ref_logprobs=even, coefficients={"beta": 0.05}, **columns)


def records(line: Line) -> None:
    """A file of pairs, from the disk to the first step, within the limits."""
    from trimtab.data import load_records
    from trimtab.methods import find
    from trimtab.policies.load import ModelConfig, load_language_policy, resolve_model
    from trimtab.train import RunConfig, make_table, train

    method, run = find("orpo")(), RunConfig(steps=1, batch_size=32)
    policy = load_language_policy(ModelConfig(resolve_model("reviews"), precision="fp32", device="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(file := Path(folder) / "pairs.jsonl", line["size"])
        line["before"], end = status("VmRSS"), time.perf_counter() + MOST_SECONDS

        def watch(*_: Any) -> None:
            if status("VmRSS") - line["before"] > MOST_BYTES:
                raise MemoryError("over 1.5 GB")
            if time.perf_counter() > end:
                raise TimeoutError("over 6 minutes")

        signal.signal(signal.SIGALRM, watch)
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
        try:
            line["reading (s)"], found = timed(load_records, str(file))
            line["tokenising (s)"], table = timed(make_table, method, found, policy.tokenizer, run)
            line["first step (s)"], _ = timed(next, iter(train(method, policy, table, run)))
        except (MemoryError, TimeoutError) as error:
            line["stopped"] = str(error) or "over 1.5 GB"  # of Python itself it has no words
        signal.setitimer(signal.ITIMER_REAL, 0)


def write_pairs(file: Path, count: int) -> None:
    """Prompts of 6 words of film reviews, and two responses of 10 each: the same in every run."""
    from trimtab.data import load_records

    words = [word for record in load_records("reviews") for word in record.responses[0].split()]
    draw, kinds = random.Random(0).choices, {"prompt": 6, "chosen": 10, "rejected": 10}
    with file.open("w", encoding="utf-8") as lines:
        for _ in range(count):
            lines.write(json.dumps({kind: " ".join(draw(words, k=k)) for kind, k in kinds.items()}) + "\n")


def tables(found: Lines, language: str) -> str:
    """A small table for each thing that grows, as Markdown."""
    from benchmarks.language import line as row

    words, texts = WORDS[language], list[str]()
    for point, lines in found.items():
        texts += [row([words.get(point, point), *(f"{line['size']:,}" for line in lines)])]
        texts += ["|---" + "|---:" * len(lines) + "|"]
        for name in (*CURVES[point], "MB"):
            texts.append(row([words.get(name, name), *(cell(line, name, words) for line in lines)]))
        texts.append("")
    return "\n".join(texts[:-1])


def cell(line: Line, name: str, words: dict[str, str]) -> str:
    """Seconds or megabytes; of a phase that did not end the reason, and memory until then."""
    stopped = line.get("stopped", "")
    if name == "MB":
        return f"{'> ' * bool(stopped)}{line[name]:,.0f}"
    return f"{line[name]:.3g}" if name in line else str(words.get(stopped, stopped))


def draw(found: Lines, file: Path) -> None:
    """Seconds above megabytes, a column for each thing that grows; the dashed line grows in proportion."""
    from matplotlib import rc_context

    from trimtab.compare.plots import STYLE, WIDE, canvas

    with rc_context(STYLE):
        figure, axes = canvas(WIDE * len(found) / len(SIZES), 4.4, 2, len(found))
        for place, (point, lines) in enumerate(found.items()):
            above, below = axes[place], axes[place + len(found)]
            above.set_title(WORDS["en"].get(point, point))
            curves(above, lines, CURVES[point])
            curves(below, [line for line in lines if "stopped" not in line], ("MB",))
            below.set_xlim(above.get_xlim())
            if len(CURVES[point]) > 1:
                above.legend(loc="lower right" if point == "records" else "upper left", fontsize=8)
        axes[0].set_ylabel("seconds")
        axes[len(found)].set_ylabel("MB")
        figure.savefig(file, dpi=150)


def curves(axis: Any, lines: list[Line], names: tuple[str, ...]) -> None:
    from matplotlib.ticker import LogLocator

    from trimtab.compare.plots import COLOURS

    axis.set(xscale="log", yscale="log")
    for colour, name in zip(COLOURS, names, strict=False):
        points = [(line["size"], line[name]) for line in lines if name in line]
        label = name.removeprefix("seconds ").removesuffix(" (s)")
        axis.plot(*zip(*points, strict=True), "o-", color=colour, label=label, markersize=4)
    low, high = axis.get_ylim()
    axis.set_ylim(low / 1.4, high * 1.4)  # room for ticks; the dashed line may leave it
    sizes, values = axis.lines[0].get_data()
    axis.plot(sizes, values[-1] / sizes[-1] * sizes, "--", color="#b4b9c1", linewidth=1, zorder=0)
    axis.set_xticks(sizes, [f"{s}" if s < 1000 else f"{s // 1000}k" if s < 10**6 else "1M" for s in sizes])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.minorticks_off()


if __name__ == "__main__":
    main()
