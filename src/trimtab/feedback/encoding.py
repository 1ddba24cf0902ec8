"""From texts to tokens, many at once: chat templates, the boundary of prompt and response, the end token."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.errors import UserError
from trimtab.feedback.records import Message, Prompt
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


def encode_together(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[Prompt, str]]
) -> list[tuple[Ids, Ids]]:
    """The tokens of each prompt and of its response, which ends with an end token; none spans both.

    Raises UserError as `encode_prompt` and `end_tokens` do.
    """
    ends = end_tokens(tokenizer)
    openings = _openings(tokenizer, [prompt for prompt, _ in texts])
    of_prompts = dict(zip(openings, _prompt_ids(tokenizer, openings), strict=True))
    wholes = _wholes(tokenizer, texts)
    of_wholes = _ids(tokenizer, wholes, [isinstance(prompt, str) for prompt, _ in texts])
    responses: list[list[int]] = []
    alone: dict[int, str] = {}  # place -> text of a response that is tokenised by itself
    for place, (prompt, response) in enumerate(texts):
        ids, whole_ids = of_prompts[prompt], of_wholes[place] if prompt else []
        responses.append(whole_ids[len(ids) :])
        # a tokenizer may merge across the boundary; then the response is tokenised alone
        if not responses[place] or whole_ids[: len(ids)] != ids:
            opening, whole = openings[prompt], wholes[place]
            goes_on = not isinstance(prompt, str) and whole.startswith(opening)
            alone[place] = whole[len(opening) :] if goes_on else response
    for place, ids in zip(alone, _ids(tokenizer, list(alone.values()), [False] * len(alone)), strict=True):
        responses[place] = ids
    closed = _closed(tokenizer, responses, ends)
    return [(of_prompts[prompt], ids) for (prompt, _), ids in zip(texts, closed, strict=True)]


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """Tokens of a prompt, ready for a response to follow; at least one (BOS, or else EOS).

    Raises UserError if the chat template refuses the conversation, or if there is no token to begin with.
    """
    return _prompt_ids(tokenizer, _openings(tokenizer, [prompt]))[0]


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


def _openings(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Prompt]) -> dict[Prompt, str]:
    """The text of each distinct prompt: its own, or what the template makes of it."""
    distinct = list(dict.fromkeys(prompts))
    talks = [prompt for prompt in distinct if not isinstance(prompt, str)]
    rendered = iter(_rendered(tokenizer, talks, open_turn=True))
    return {prompt: prompt if isinstance(prompt, str) else next(rendered) for prompt in distinct}


def _wholes(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[Prompt, str]]) -> list[str]:
    """The text of each prompt with its response."""
    talks = [(*p, Message("assistant", response)) for p, response in texts if not isinstance(p, str)]
    rendered = iter(_rendered(tokenizer, talks, open_turn=False))
    return [p + response if isinstance(p, str) else next(rendered) for p, response in texts]


def _prompt_ids(tokenizer: "PreTrainedTokenizerBase", openings: Mapping[Prompt, str]) -> list[list[int]]:
    """The tokens of each prompt, from its text."""
    is_text = [isinstance(prompt, str) for prompt in openings]
    eos = tokenizer.eos_token_id
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos
    found = _ids(tokenizer, list(openings.values()), is_text)
    for place, ids in enumerate(found):
        if is_text[place] and len(ids) > 1 and ids[-1] == eos:
            ids.pop()  # some tokenizers close every text; a response is still to come
        if not ids and start is None:
            raise UserError("a prompt has no tokens, and the tokenizer no BOS or EOS to begin with; add text")
        found[place] = ids or [start]
    return found


def _closed(
    tokenizer: "PreTrainedTokenizerBase", responses: Sequence[list[int]], ends: set[int]
) -> list[list[int]]:
    """Ends each response with exactly one end token; a template's newline after it is dropped."""
    never = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    special = ends | (set(tokenizer.all_special_ids) - never)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(ends)
    is_blank: dict[tuple[int, ...], bool] = {(): True}  # of what follows the last special token
    closed = []
    for ids in responses:
        if special.isdisjoint(ids):  # as nearly always with text prompts, and found out fastest
            closed.append([*ids, end])
            continue
        last = max(place for place, token in enumerate(ids) if token in special)
        rest = tuple(ids[last + 1 :])
        if rest not in is_blank:
            is_blank[rest] = not str(tokenizer.decode(list(rest))).strip()
        closed.append(ids[: last + 1] if is_blank[rest] else [*ids, end])
    return closed


def _ids(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], framed: Sequence[bool]
) -> list[list[int]]:
    """What `tokenizer(text)` gives for each text. framed: with the special tokens that it puts around."""
    if len(set(framed)) < 2:
        return _batch(tokenizer, list(texts), bool(framed and framed[0]))
    found: list[list[int]] = [[] for _ in texts]
    for special in (True, False):
        places = [place for place, frame in enumerate(framed) if frame == special]
        for place, ids in zip(places, _batch(tokenizer, [texts[i] for i in places], special), strict=True):
            found[place] = ids
    return found


def _batch(tokenizer: Any, texts: list[str], special: bool) -> list[list[int]]:
    from transformers import PreTrainedTokenizerFast

    usual = PreTrainedTokenizerFast
    if not texts or (type(tokenizer).__call__, getattr(type(tokenizer), "_encode_plus", None)) != (
        usual.__call__,
        usual._encode_plus,
    ):
        return [list(tokenizer(text, add_special_tokens=special).input_ids) for text in texts]
    tokenizer(texts[0], add_special_tokens=special)  # takes padding and truncation out of the settings
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=special)
    return [one.ids for one in encoded]


def _rendered(
    tokenizer: "PreTrainedTokenizerBase", talks: Sequence[Sequence[Message]], *, open_turn: bool
) -> list[str]:
    """What the chat template makes of each conversation."""
    turns = [[{"role": m.role, "content": m.content} for m in messages] for messages in talks]
    settings: dict[str, Any] = {"tokenize": False, "add_generation_prompt": open_turn}
    settings["chat_template"] = None if tokenizer.chat_template else PLAIN_CHAT_TEMPLATE
    try:
        found = tokenizer.apply_chat_template(turns, **settings) if turns else []
        if isinstance(found, list) and len(found) == len(turns):
            return list(map(str, found))
    except Exception as error:  # one of them is refused, or they must come one by one
        log.debug("conversations are rendered one by one: %s", error)
    return [_rendered_alone(tokenizer, of_talk, settings) for of_talk in turns]


def _rendered_alone(tokenizer: Any, turns: list[dict[str, str]], settings: dict[str, Any]) -> str:
    try:
        return str(tokenizer.apply_chat_template(turns, **settings))
    except Exception as error:  # templates raise what they like, jinja2's errors among them
        roles = " ".join(turn["role"] for turn in turns)
        raise UserError(f"the chat template refuses a conversation of turns {roles!r}: {error}") from error
