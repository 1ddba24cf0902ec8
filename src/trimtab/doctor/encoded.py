"""The sequences of some feedback as the tokenizer writes them, for the checks on tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from trimtab.doctor.templates import rendered
from trimtab.errors import UserError
from trimtab.feedback.records import Message, Prompt, Record
from trimtab.feedback.sequences import Ids
from trimtab.feedback.tokenise import encode, encode_prompt

T = TypeVar("T")
MOST = 20_000  # sequences that are tokenised; of more, this many are taken, evenly spaced
ENDLESS = 10**9  # tokens: a length that cuts nothing


@dataclass(frozen=True)
class Encoded:
    """A prompt with one of its responses, or a bare prompt.

    Attributes:
        prompt_ids, response_ids: what trimtab trains on, before anything is cut.
        alone: the tokens of the response's text by itself, without an end token.
        whole: the tokens of prompt and response as one text, as other programs may tokenise them; empty if
            there is no response or no text that begins with the prompt.
    """

    source: str
    prompt: Prompt
    response: str | None
    prompt_ids: Ids
    response_ids: Ids = ()
    alone: Ids = ()
    whole: Ids = ()

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


def encoded_rows(records: Sequence[Record], tokenizer: Any) -> tuple[list[Encoded], int]:
    """The distinct sequences of the records, at most MOST, and how many there are.

    Conversations that the template refuses are left out; `template_findings` tells them.
    """
    distinct: dict[tuple[Prompt, str | None], str] = {}
    for record in records:
        for response in record.responses or (None,):
            distinct.setdefault((record.prompt, response), record.source)
    chosen = evenly([(source, *both) for both, source in distinct.items()], MOST)
    rows = [row for place in chosen if (row := _encoded(*place, tokenizer)) is not None]
    return rows, len(distinct)


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[n * len(items) // most] for n in range(most)]


def _encoded(source: str, prompt: Prompt, response: str | None, tokenizer: Any) -> Encoded | None:
    try:
        if response is None:
            return Encoded(source, prompt, None, encode_prompt(tokenizer, prompt))
        ((prompt_ids, response_ids),) = encode([(prompt, response)], tokenizer, max_length=ENDLESS)
    except UserError:
        return None
    alone = tokenizer(response, add_special_tokens=False).input_ids
    whole = _whole(prompt, response, tokenizer)
    return Encoded(source, prompt, response, prompt_ids, response_ids, alone, whole)


def _whole(prompt: Prompt, response: str, tokenizer: Any) -> Ids:
    """Prompt and response as one text."""
    if isinstance(prompt, str):
        return tokenizer(prompt + response).input_ids if prompt else ()
    text = rendered(tokenizer, (*prompt, Message("assistant", response)), open_turn=False)
    if not text.startswith(rendered(tokenizer, prompt, open_turn=True)):
        return ()
    return tokenizer(text, add_special_tokens=False).input_ids
