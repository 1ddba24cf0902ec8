"""`trimtab generate MODEL` and what it shares with `trimtab evaluate`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.text import Text

from trimtab.cli.options import parse
from trimtab.data import is_built_in, load_records
from trimtab.errors import UserError, check_positive
from trimtab.feedback.records import Prompt, Record, as_conversation
from trimtab.feedback.tokenise import encode_prompt
from trimtab.feedback.views import convert
from trimtab.policies.load import ModelConfig, Precision, load_language_policy, resolve_model
from trimtab.rollouts.generate import Sampling, decode, generate
from trimtab.terminal import console, quiet_libraries


@dataclass(frozen=True)
class Options:
    """Answers prompts: those on the command line, or those of a file."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A folder, a hub name, or reviews."""
    prompt: tuple[str, ...] = ()
    """Prompts, each in quotes. A model with a chat template is asked in a conversation."""
    data: str | None = None
    """A file of feedback or prompts instead, or reviews."""
    out: Path | None = None
    """Write JSON lines {"prompt", "response", "ended"} here instead of text to the terminal."""
    most: int = 20
    """At most this many prompts of the file."""
    samples: int = 1
    """Answers to each prompt."""
    max_new_tokens: int = 256
    """Longest answer."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    allow_pickle: bool = False
    """Read weights from a pickle where there are no safetensors: a pickle is a program."""
    trust_remote_code: bool = False
    """Run the Python code that a model brings with it."""

    def __post_init__(self) -> None:
        check_positive(self, "most", "samples")


def run(words: list[str]) -> int:
    """Prints or writes the answers."""
    options = parse(Options, words, prog="trimtab generate")
    quiet_libraries()
    config = ModelConfig(
        model=resolve_model(options.model),
        device=options.device,
        precision=options.precision,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
    )
    policy = load_language_policy(config, trainable=False)
    if options.data is not None:
        prompts = [record.prompt for record in records_of(options.data, options.most)]
    else:
        prompts = _typed(policy.tokenizer, options.prompt)
    ids = [encode_prompt(policy.tokenizer, prompt) for prompt in prompts]
    sampling = Sampling(options.max_new_tokens, options.temperature)
    answers = generate(policy, ids, sampling, samples=options.samples, seed=options.seed)
    rows = [
        {"prompt": shown(prompt), "response": decode(policy, response), "ended": response.ended}
        for prompt, responses in zip(prompts, answers, strict=True)
        for response in responses
    ]
    if options.out is not None:
        write_rows(options.out, rows)
        console.print(f"{len(rows)} answers are in {options.out}", markup=False)
        return 0
    for row in rows:
        text = Text(str(row["prompt"]), style="bold")
        text.append(str(row["response"]), style="not bold")
        console.print(text.append("" if row["ended"] else " [...]", style="dim"), end="\n\n")
    return 0


def _typed(tokenizer: Any, prompts: tuple[str, ...]) -> list[Prompt]:
    """Prompts from the command line: turns of a conversation where the model has a chat template."""
    if not prompts:
        raise UserError("nothing to answer: pass --prompt 'some text', or --data FILE")
    if tokenizer.chat_template is None:
        return list(prompts)
    return [as_conversation(prompt) for prompt in prompts]


def records_of(data: str, most: int) -> list[Record]:
    """The first `most` different prompts of a file; of the built-in example the held-out ones."""
    split = "held_out" if is_built_in(data) else "train"
    return list(convert(load_records(data, split=split), "prompt")[:most])


def shown(prompt: Prompt) -> Any:
    """A prompt as JSON: text, or a list of messages."""
    return prompt if isinstance(prompt, str) else [asdict(message) for message in prompt]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes JSON lines to a new file. Raises UserError if it exists."""
    if path.exists():
        raise UserError(f"{path} exists already; choose another --out, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
