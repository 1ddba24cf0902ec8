"""A few steps of training in a process of their own: how much memory they take, and how long.

On a CPU two numbers are measured. What tensors take shows where freed memory goes back to the system at once.
What the process holds is more: training tells glibc to keep what is freed (see `allocator`), which fits the
next tensors only in part. On a GPU these are the memory that torch allocated and that it reserved.
"""

import ctypes
import multiprocessing
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from trimtab.allocator import M_MMAP_THRESHOLD, keep_freed_memory
from trimtab.errors import UserError
from trimtab.feedback.batches import Example, Table
from trimtab.feedback.records import Record
from trimtab.methods import Method
from trimtab.methods.base import OnlineMethod
from trimtab.online import OnlineConfig, train_online
from trimtab.online_jobs import CriticConfig, build_critic, build_reference
from trimtab.policies.actor_critic import ActorCritic
from trimtab.policies.load import ModelConfig, load_language_policy, load_reward_model, resolve_device
from trimtab.rollouts.collect import CollectConfig, Collector
from trimtab.rollouts.rewards import WeightedSum
from trimtab.terminal import quiet_libraries
from trimtab.train import RunConfig, make_table, train

PARTS = 2  # micro-batches of a step, so that gradients lie there while activations grow


@dataclass(frozen=True)
class Trial:
    """What is tried out; pickled, and carried out in another process.

    Attributes:
        records: of the kind that the method takes; some of the longest.
        sizes: of --batch-tokens, growing.
        epochs: over each collection, of an online method.
        threads: of torch; 0 leaves its own choice.
    """

    method: Method[Any]
    model: ModelConfig
    run: RunConfig
    records: tuple[Record, ...]
    sizes: tuple[int, ...]
    collect: CollectConfig
    critic: CriticConfig
    epochs: int = 1
    threads: int = 0


@dataclass(frozen=True)
class Taken:
    """What two steps took whose micro-batches have so many tokens at most.

    Attributes:
        tokens: of the largest micro-batch, a prompt counted with each of its responses.
        step_tokens: of a whole step.
        memory: bytes of tensors at most, those of Python and its libraries with them.
        seconds: of the second step.
    """

    tokens: int
    step_tokens: int
    memory: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """What a trial found.

    Attributes:
        base: bytes of the process before the model was loaded: Python and its libraries; 0 on a GPU.
        available: bytes that there were for all of it, `base` included.
        taken: for each size.
        held: bytes that the process holds at most at the last size, as training runs; or the GPU reserves.
        seconds: of a step of the last size, as training runs.
    """

    base: int
    available: int
    taken: tuple[Taken, ...]
    held: int
    seconds: float


def measured(trial: Trial, seconds: float) -> Measured:
    """Carries out the trial in another process.

    Raises UserError if it died, which mostly is want of memory, took too long, or was refused.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sending, trial), daemon=True)
    process.start()
    sending.close()
    try:
        if not receiving.poll(seconds):
            raise UserError(f"a few steps took longer than {seconds:.0f} s")
        answer = receiving.recv()
    except EOFError:
        process.join()
        raise UserError("its process was killed, most likely for want of memory") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise UserError(answer)
    found: Measured = answer
    return found


def _child(sending: Connection, trial: Trial) -> None:
    quiet_libraries()
    if trial.threads:
        torch.set_num_threads(trial.threads)
    with open(os.devnull, "w") as nowhere:  # what libraries print is not for the doctor's reader
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        sending.send(carry_out(trial))
    except Exception as error:  # it is told to the other process in its words
        sending.send(" ".join(str(error).split())[:300] or type(error).__name__)


def carry_out(trial: Trial) -> Measured:
    """The measurement itself, in a process that has done nothing else."""
    device = resolve_device(trial.model.device)
    return_freed_memory()
    base = 0 if device.type == "cuda" else _status("VmRSS")
    available = available_memory(device) + base
    load: Any = load_reward_model if trial.method.trains == "reward model" else load_language_policy
    model = load(trial.model, seed=trial.run.seed)
    step = _online(trial, model) if isinstance(trial.method, OnlineMethod) else _offline(trial, model)
    taken = tuple(step(size) for size in trial.sizes)
    if device.type == "cuda":
        held = torch.cuda.max_memory_reserved(device)
        return Measured(base, available, taken, held, taken[-1].seconds)
    keep_freed_memory()
    last = step(trial.sizes[-1])
    return Measured(base, available, taken, last.memory, last.seconds)


def return_freed_memory() -> None:
    """Tells glibc to ask for and give back all but small blocks one by one."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)


def _offline(trial: Trial, model: Any) -> Any:
    table = make_table(trial.method, trial.records, model.tokenizer, trial.run)
    if trial.method.needs_reference:  # as long as they are, whatever they say
        table.ref_logprobs = [torch.full((len(response),), -1.0) for _, response in table.rows]

    def step(size: int) -> Taken:
        part, tokens = filled(table, size)
        run = replace(trial.run, batch_tokens=size, batch_size=len(part), steps=2)
        seconds, most = _timed(train(trial.method, model, part, run), model.device)
        return Taken(largest_part(tokens, size), sum(tokens), most, seconds)

    return step


def filled(table: Table, size: int) -> tuple[Table, list[int]]:
    """Examples that fill PARTS micro-batches of this size, over again if need be, and the tokens of each."""
    examples: list[Example] = []
    tokens: list[int] = []
    for example in cycle(table.examples):
        rows = example.rows + ((example.mismatched,) if example.mismatched >= 0 else ())
        count = sum(len(part) for row in rows for part in table.rows[row])
        if examples and sum(tokens) + count > PARTS * size:
            break
        examples.append(example)
        tokens.append(count)
    if len(examples) == 1:  # longer than what was asked for: two of them, each a part of its own
        examples, tokens = examples * PARTS, tokens * PARTS
    return Table(table.kind, table.rows, examples, table.ref_logprobs), tokens


def largest_part(tokens: list[int], size: int) -> int:
    """Tokens of the largest micro-batch when these examples are cut into parts of this size."""
    largest = part = 0
    for count in sorted(tokens):
        part = part + count if part and part + count <= size else count
        largest = max(largest, part)
    return largest


def _online(trial: Trial, model: Any) -> Any:
    method, run, collect = trial.method, trial.run, trial.collect
    assert isinstance(method, OnlineMethod)
    model.end_tokens = {model.trunk.hf.config.get_text_config().vocab_size}  # cannot be drawn: all are long
    critic = build_critic(method, model, trial.model, trial.critic, run.seed)
    learner = ActorCritic(model, critic, collect.temperature)
    reference = build_reference(learner, trial.model)
    samples = collect.samples or method.samples
    scores = WeightedSum({"made up": _made_up}, {"made up": 1.0})

    def step(size: int) -> Taken:
        room = {"samples": samples, "max_length": run.max_length, "seed": run.seed}
        source = Collector(model, trial.records, scores, collect, **room)
        longest = max(map(len, source.ids)) + collect.max_new_tokens
        prompts = max(1, PARTS * size // (longest * samples))
        source = Collector(model, trial.records, scores, replace(collect, prompts=prompts), **room)
        online = OnlineConfig(
            refreshes=2,
            epochs=trial.epochs,
            batch_tokens=size,
            max_length=run.max_length,
            seed=run.seed,
            learning_rate=run.learning_rate,
        )
        seconds, most = _timed(train_online(method, learner, source, online, reference), model.device)
        tokens = [len(ids) + collect.max_new_tokens for ids in source.ids] * samples
        tokens = list(islice(cycle(sorted(tokens, reverse=True)), prompts * samples))
        return Taken(largest_part(tokens, size), sum(tokens), most, seconds)

    return step


def _made_up(prompts: Any, responses: Any, columns: Any = None) -> list[float]:
    return [float(i % 3) for i in range(len(responses))]


def _timed(steps: Iterable[Any], device: torch.device) -> tuple[float, int]:
    """Seconds of the second of two steps, and the memory that both took at most."""
    forget_peak(device)
    marks = []
    for _ in steps:
        if device.type == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
    return marks[-1] - marks[-2], peak(device)


def forget_peak(device: torch.device) -> None:
    """Measures anew from here, where the system can (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak(device: torch.device) -> int:
    """Bytes at most: of tensors on the GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if (peak := _status("VmHWM")) or os.name == "nt":
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_memory(device: torch.device) -> int:
    """Bytes that could be used now: free on the GPU, or what the system and its limits leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    if not info.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = int(info.read_text(encoding="utf-8").split("MemAvailable:")[1].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists():
        limit, used, rest = (
            (group / name).read_text(encoding="utf-8").strip()
            for name in ("memory.max", "memory.current", "memory.stat")
        )
        if limit != "max":  # cached files count as used, and give way
            files = rest.partition("inactive_file ")[2].split()[:1]
            free = min(free, int(limit) - int(used) + int(files[0] if files else 0))
    return free


def _status(name: str) -> int:
    """Bytes that Linux says of this process under a name such as VmHWM."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    text = status.read_text(encoding="utf-8")
    return int(text.split(f"{name}:")[1].split()[0]) * 1024 if f"{name}:" in text else 0
