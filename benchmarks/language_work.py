"""What `benchmarks.language` trains and measures: models, tokenizer, data, seconds, bytes and operations."""

import gzip
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Message = dict[str, str]

SOURCES = Path(__file__).parents[2] / "shared" / "data"
OFFLINE = ("dpo", "ipo", "kto", "orpo", "reward_model", "sft")
ONLINE = ("grpo", "rloo", "ppo")
BETA = {"dpo": 0.1, "ipo": 0.1, "kto": 0.1, "orpo": 0.1, "grpo": 0.05, "rloo": 0.05, "ppo": 0.05}
LEARNING_RATE, HEAD_LEARNING_RATE, EPSILON, MAX_NORM = 1e-5, 1e-3, 1e-8, 1.0
EPOCHS, CLIP, LAM, VALUE_WEIGHT = 4, 0.2, 0.95, 0.1  # of PPO
SEED = 0

# name: vocabulary, hidden size, intermediate size, layers, heads, heads of keys and values, head tied to the
# embedding. All are Qwen2's architecture; the last three are Qwen2.5's own shapes.
SHAPES = {
    "8m": (8_192, 256, 704, 8, 4, 2, True),
    "50m": (32_000, 512, 1_408, 11, 8, 4, True),
    "80m": (151_936, 384, 1_024, 12, 6, 2, True),
    "0.5b": (151_936, 896, 4_864, 24, 14, 2, True),
    "1.5b": (151_936, 1_536, 8_960, 28, 12, 2, True),
    "7b": (152_064, 3_584, 18_944, 28, 28, 4, False),
}
TOKENS = 8_192
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (  # nothing follows the end token, and special tokens stand on both sides of every boundary
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Turn:
    """One side's training of one job, which is a process of its own."""

    side: str
    job: str
    model: str
    data: str
    precision: str
    steps: int
    batch: int
    max_length: int
    batch_tokens: int
    prompts: int
    samples: int
    new_tokens: int
    lora_rank: int
    threads: int
    device: str
    out: str

    @property
    def folder(self) -> str:
        """Where the model is that training starts from; reward models have a folder with a head in it."""
        name = f"{self.model}_reward" if self.job == "reward_model" else self.model
        return str(Path(self.out) / "models" / name)

    @property
    def base_dtype(self) -> torch.dtype:
        """Of the weights as they are loaded: float32 if they are trained, and as computed below adapters."""
        return torch.bfloat16 if self.lora_rank and self.precision == "bf16" else torch.float32

    @property
    def never(self) -> int:
        """An end token that cannot be drawn, so that all answers have the same length."""
        return SHAPES[self.model][0]

    @property
    def rows(self) -> int:
        """Pieces of feedback, or prompts, that the steps take."""
        return self.steps * (self.prompts if self.job in ONLINE else self.batch)


@dataclass(frozen=True)
class Row:
    """A conversation that ends before the response, and two responses."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass
class Meter:
    """Takes the time of steps, and the memory over what was held before the model was loaded.

    The first step is a warm-up. Reference log-probs that are computed once, before training, are counted
    beside it: their seconds by the number of steps that they serve for are a part of every step.
    """

    device: str
    reference: float = 0.0
    marks: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    before: int = 0

    def loading(self) -> None:
        """Call it just before the model is loaded."""
        self.before = 0 if self.device == "cuda" else status("VmRSS")

    def step(self, loss: float | None = None) -> None:
        """Call it at the end of every step."""
        self.marks.append(self.now())
        if loss is not None:
            self.losses.append(loss)

    @contextmanager
    def computing_reference(self) -> Iterator[None]:
        start = self.now()
        yield
        self.reference += self.now() - start

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def result(self, turn: Turn, model: Any) -> dict[str, Any]:
        """Per step: seconds, samples, tokens of prompt and response that are trained on, and operations."""
        tokens = self.tokens / turn.steps
        seconds = (self.marks[-1] - self.marks[0]) / (turn.steps - 1) + self.reference / turn.steps
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else status("VmHWM") - self.before
        return {
            "seconds": seconds,
            "samples": turn.prompts * turn.samples if turn.job in ONLINE else turn.batch,
            "tokens": tokens,
            "operations": operations(turn, model, tokens),
            "memory": peak,
            "losses": self.losses,
        }


def status(name: str) -> int:
    """Bytes that Linux says this process holds (VmRSS) or held at most (VmHWM)."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split(f"{name}:")[1].split()[0]) * 1024


def operations(turn: Turn, model: Any, tokens: float) -> float:
    """Floating-point operations of a step as plain computation would take, attention itself left out.

    2 for each parameter and token of a forward pass, 4 of a backward pass (2 below adapters, whose base gets
    no gradient). Parameters are those that multiply: the embedding's lookup does not, a head tied to it does.
    Every token passes through the head. Forward passes: the reference one; KTO two more, of policy and
    reference, on mismatched pairs; answers that are generated one (each token once, with a cache); PPO one
    for old log-probs and values. A token that several samples share is counted for each of them.
    """
    embedding = model.get_input_embeddings().weight
    head = None if turn.job == "reward_model" else model.get_output_embeddings()
    counted = sum(p.numel() for p in model.parameters())
    if head is None or head.weight is not embedding:
        counted -= embedding.numel()
    extra = {"dpo": 1, "ipo": 1, "kto": 3, "grpo": 2, "rloo": 2, "ppo": 3}.get(turn.job, 0)
    training = (4 if turn.lora_rank else 6) * (EPOCHS if turn.job == "ppo" else 1)
    return counted * tokens * (2 * extra + training)


def make_models(out: Path, names: list[str], sources: Path) -> None:
    """Random weights with a tokenizer, and others with a reward head, where there are none yet."""
    from transformers import Qwen2ForCausalLM, Qwen2ForSequenceClassification

    for name in names:
        folder = out / "models" / name
        if folder.exists():
            continue
        config = config_of(name, eos_token_id=SPECIAL.index("<|end|>"), pad_token_id=SPECIAL.index("<|pad|>"))
        config.num_labels = 1
        torch.manual_seed(SEED)
        tokenizer = train_tokenizer(sources)
        for kind, place in ((Qwen2ForSequenceClassification, f"{name}_reward"), (Qwen2ForCausalLM, name)):
            kind(config).save_pretrained(out / "models" / place)
            tokenizer.save_pretrained(out / "models" / place)


def config_of(name: str, **more: Any) -> Any:
    """The configuration of a shape."""
    from transformers import Qwen2Config

    vocabulary, hidden, inner, layers, heads, key_heads, tied = SHAPES[name]
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=tied,
        bos_token_id=None,
        **more,
    )


def train_tokenizer(sources: Path) -> Any:
    """Byte-level BPE of 8,192 tokens, learned from a part of the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = bytewise, decoders.ByteLevel()
    settings: Any = {"initial_alphabet": bytewise.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=TOKENS, special_tokens=list(SPECIAL), **settings)
    texts = [review["text"] for review in _documents(sources)[:400]]
    texts += [text for row in _dialogues(sources, None) for text in (row.chosen, row.rejected)]
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def rows_of(turn: Turn, tokenizer: Any, sources: Path) -> list[Row]:
    """As many rows as the steps take, or all that there are; none is over the limit with either response.

    Raises SystemExit if there are not enough for one step.
    """
    room = turn.max_length - (turn.new_tokens if turn.job in ONLINE else 0)

    def length(row: Row, response: str) -> int:
        messages = [*row.prompt, {"role": "assistant", "content": response}]
        return len(tokenizer(tokenizer.apply_chat_template(messages, tokenize=False)).input_ids)

    kept: list[Row] = []
    for row in DATA[turn.data](sources, tokenizer):
        if len(kept) == turn.rows:
            break
        if max(length(row, row.chosen), length(row, row.rejected)) <= room:
            kept.append(row)
    if len(kept) * turn.steps < turn.rows:
        raise SystemExit(f"{turn.data}: only {len(kept)} rows of at most {room} tokens; a step takes more")
    return kept


def in_order(rows: list[Row], turn: Turn) -> list[int]:
    """The numbers of the rows as trimtab takes them, epoch by epoch, for all steps."""
    word = "prompts " if turn.job in ONLINE else ""
    order: list[int] = []
    for epoch in range(-(-turn.rows // len(rows))):
        numbers = list(range(len(rows)))
        random.Random(f"{SEED} {word}{epoch}").shuffle(numbers)
        order += numbers
    return order[: turn.rows]


def letters(text: str) -> float:
    """The reward of the online jobs: how often an answer has the letter e."""
    return float(text.count("e"))


def _sentences(sources: Path) -> list[Any]:
    lines = (sources / "reviews" / "sentences.jsonl").read_text(encoding="utf-8").splitlines()
    return _shuffled([json.loads(line) for line in lines])


def _documents(sources: Path) -> list[Any]:
    with gzip.open(sources / "reviews" / "documents.jsonl.gz", "rt", encoding="utf-8") as lines:
        return _shuffled([json.loads(line) for line in lines])


def _shuffled(items: list[Any]) -> list[Any]:
    return random.Random(SEED).sample(items, len(items))


def _dialogues(sources: Path, _: Any) -> Iterator[Row]:
    """Conversations of mixed length."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    found = json.loads((sources / "demos" / "dpo_en_demo.json").read_text(encoding="utf-8"))
    for row in _shuffled(found):
        turns = [{"role": roles[t["from"]], "content": t["value"]} for t in row["conversations"]]
        yield Row(tuple(turns), row["chosen"]["value"], row["rejected"]["value"])


def _long(sources: Path, tokenizer: Any) -> Iterator[Row]:
    """The first 350 tokens of a film review; a sentence that judges alike, and one that does not."""
    sentences = _sentences(sources)
    by_label = {
        label: iter([s["text"] for s in sentences if s["positive"] == label]) for label in (True, False)
    }
    for review in _documents(sources):
        start = tokenizer.decode(tokenizer(review["text"]).input_ids[:350])
        prompt = {"role": "user", "content": f"{start}\n\nIn one sentence: how is the film?"}
        yield Row((prompt,), next(by_label[review["positive"]]), next(by_label[not review["positive"]]))


def _short(sources: Path, _: Any) -> Iterator[Row]:
    """The first four words of a sentence; how it goes on, and how another one does."""
    sentences = [s["text"].split() for s in _sentences(sources)]
    sentences = [words for words in sentences if len(words) > 8]
    for words, others in zip(sentences[::2], sentences[1::2], strict=False):
        prompt = {"role": "user", "content": " ".join(words[:4])}
        yield Row((prompt,), " ".join(words[4:]), " ".join(others[4:]))


DATA: Any = {"dialogues": _dialogues, "long": _long, "short": _short}
