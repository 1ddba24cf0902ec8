"""Records to tokens: chat templates, the boundary between prompt and response, and lengths."""

import logging
import random
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trimtab.errors import UserError
from trimtab.feedback.batches import Example, Table
from trimtab.feedback.records import Message, Prompt, Record
from trimtab.feedback.sequences import Ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("trimtab")

# For conversations with a tokenizer that has no template: the transcript form of HH-RLHF (Bai et al. 2022).
PLAIN_CHAT_TEMPLATE = (  # line breaks stand in expressions: after a block they would be trimmed
    "{{ bos_token or '' }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ '\\n\\nAssistant: ' + message.content + (eos_token or '') }}"
    "{% elif message.role == 'user' %}{{ '\\n\\nHuman: ' + message.content }}"
    "{% else %}{{ '\\n\\n' + message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)


def tokenise(records: Sequence[Record], tokenizer: "PreTrainedTokenizerBase", *, max_length: int) -> Table:
    """Turns records of one kind into a table of token sequences.

    Every response ends with the end-of-sequence token unless it had to be cut. Tokens never span
    the boundary between prompt and response.

    Args:
        records: all of one kind, not "prompt".
        max_length: tokens of prompt and response together; prompts lose their beginning, responses
            their end, and how many were cut is logged.
    """
    pairs = [(r.prompt, response) for r in records for response in r.responses]
    index: dict[tuple[Prompt, str], int] = {}
    for pair in pairs:
        index.setdefault(pair, len(index))
    rows = encode(list(index), tokenizer, max_length=max_length)
    examples = [
        example
        for record in records
        for example in _examples(record, tuple(index[record.prompt, r] for r in record.responses))
    ]
    kind = records[0].kind
    if kind == "score":
        examples = _with_baselines(examples, records)
    return Table(kind=kind, rows=rows, examples=examples)


def encode(
    texts: Sequence[tuple[Prompt, str]], tokenizer: "PreTrainedTokenizerBase", *, max_length: int
) -> list[tuple[Ids, Ids]]:
    """The tokens of each (prompt, response), as `tokenise` describes; an empty response is its end token."""
    ends = end_tokens(tokenizer)
    rows = [_encode(tokenizer, prompt, response, ends) for prompt, response in texts]
    cut = [_cut(row, max_length, tokenizer.bos_token_id) for row in rows]
    if shortened := sum(a is not b for a, b in zip(rows, cut, strict=True)):
        log.warning("%d of %d sequences were cut to %d tokens", shortened, len(rows), max_length)
    return cut


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """Tokens of a prompt, ready for a response to follow; at least one (BOS, or else EOS).

    Raises UserError if the chat template refuses the conversation, or if there is no token to begin with.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt).input_ids)
        if ids and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            ids.pop()  # some tokenizers close every text; a response is still to come
    else:
        ids = _plain_ids(tokenizer, _template(tokenizer, prompt, open_turn=True))
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not ids and start is None:
        raise UserError("a prompt has no tokens, and the tokenizer no BOS or EOS to begin with; add text")
    return ids or [start]


def end_tokens(tokenizer: "PreTrainedTokenizerBase", generation_config: Any = None) -> set[int]:
    """The ids that end a response: the tokenizer's EOS and those of the generation configuration.

    Raises UserError if there is none.
    """
    listed = getattr(generation_config, "eos_token_id", None)
    listed = listed if isinstance(listed, list) else [listed]
    try:
        ends = {int(i) for i in [tokenizer.eos_token_id, *listed] if i is not None}
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"generation_config.json: eos_token_id holds {listed}, not ids; correct it"
        ) from error
    if not ends:
        raise UserError("the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    return ends


def _encode(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, response: str, ends: set[int]
) -> tuple[Ids, Ids]:
    prompt_ids = encode_prompt(tokenizer, prompt)
    if isinstance(prompt, str):
        whole, tail = prompt + response, response
        whole_ids = list(tokenizer(whole).input_ids) if prompt else []
    else:
        opening = _template(tokenizer, prompt, open_turn=True)
        whole = _template(tokenizer, (*prompt, Message("assistant", response)), open_turn=False)
        tail = whole[len(opening) :] if whole.startswith(opening) else response
        whole_ids = _plain_ids(tokenizer, whole)
    # a tokenizer may merge across the boundary; then the response is tokenised alone
    if prompt_ids == whole_ids[: len(prompt_ids)] and len(whole_ids) > len(prompt_ids):
        response_ids = whole_ids[len(prompt_ids) :]
    else:
        response_ids = _plain_ids(tokenizer, tail)
    return prompt_ids, _close(tokenizer, response_ids, ends)


def _close(tokenizer: "PreTrainedTokenizerBase", ids: list[int], ends: set[int]) -> list[int]:
    """Ends the response with exactly one end token; a template's newline after it is dropped."""
    never = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    special = ends | (set(tokenizer.all_special_ids) - never)
    last = max((i for i, token in enumerate(ids) if token in special), default=-1)
    if last >= 0 and not str(tokenizer.decode(ids[last + 1 :])).strip():
        return ids[: last + 1]
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(ends)
    return [*ids, end]


def _plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _template(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, open_turn: bool) -> str:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=open_turn,
            chat_template=None if tokenizer.chat_template else PLAIN_CHAT_TEMPLATE,
        )
    except Exception as error:  # templates raise what they like, jinja2's errors among them
        roles = " ".join(m.role for m in messages)
        raise UserError(f"the chat template refuses a conversation of turns {roles!r}: {error}") from error
    return str(text)


def _cut(row: tuple[Ids, Ids], max_length: int, bos: int | None) -> tuple[Ids, Ids]:
    """Shortens a row: the prompt gives way first, down to half of max_length."""
    prompt, response = row
    if len(prompt) + len(response) <= max_length:
        return row
    response = response[: max_length - min(len(prompt), max_length // 2)]
    room = max_length - len(response)
    if len(prompt) > room:
        kept = prompt[len(prompt) - room :]
        prompt = [bos, *kept[1:]] if bos is not None and prompt[0] == bos else kept
    return prompt, response


def _examples(record: Record, rows: tuple[int, ...]) -> list[Example]:
    if record.kind == "score":
        return [Example(rows=(row,), score=s) for row, s in zip(rows, record.scores, strict=True)]
    return [
        Example(
            rows=rows,
            desirable=bool(record.desirable),
            margin=record.margin or 0.0,
            ranks=record.ranks,
        )
    ]


def _with_baselines(examples: list[Example], records: Sequence[Record]) -> list[Example]:
    """Centres and scales scores: the baseline is the prompt's mean, or the file's for a lone response.

    Scores are divided by their standard deviation over the file, so that `score_weight` means the
    same on any scale.
    """
    prompts = [r.prompt for r in records for _ in r.responses]
    scores = [e.score for e in examples]
    scale = statistics.pstdev(scores)
    if scale == 0:
        raise UserError("all scores are equal; they say nothing about which response is better")
    by_prompt: dict[Prompt, list[float]] = defaultdict(list)
    for prompt, score in zip(prompts, scores, strict=True):
        by_prompt[prompt].append(score)
    overall = statistics.fmean(scores)
    centre = {p: statistics.fmean(s) if len(s) > 1 else overall for p, s in by_prompt.items()}
    return [
        replace(e, score=e.score / scale, baseline=centre[p] / scale)
        for e, p in zip(examples, prompts, strict=True)
    ]


def add_mismatched(table: Table, seed: int) -> None:
    """Gives every example a row with its own prompt and the response to another one (for KTO's KL).

    Examples are put in order by prompt and each takes the response that stands one largest group
    further on, so that no response ever meets its own prompt.

    Raises UserError if more than half of the examples share one prompt.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, example in enumerate(table.examples):
        groups[tuple(table.rows[example.rows[0]][0])].append(i)
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    order = [i for group in shuffled for i in group]
    shift = max(len(group) for group in shuffled)
    if 2 * shift > len(order):
        raise UserError(
            "KTO measures its KL on prompts with the responses to other prompts, but more than half of "
            "this feedback is about one prompt; add feedback on other prompts, or use another method"
        )
    responses = [table.rows[e.rows[0]][1] for e in table.examples]
    for place, i in enumerate(order):
        other = order[(place + shift) % len(order)]
        prompt = table.rows[table.examples[i].rows[0]][0]
        table.rows.append((prompt, responses[other]))
        table.examples[i] = replace(table.examples[i], mismatched=len(table.rows) - 1)
