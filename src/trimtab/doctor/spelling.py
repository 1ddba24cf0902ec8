"""Checks on what the tokenizer makes of the text itself: nothing, something unknown, something special."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from trimtab.doctor.encoded import Encoded
from trimtab.doctor.findings import Check, Finding, Level, share
from trimtab.feedback.records import as_conversation

PROBED = 2000  # characters that are tried one by one, to name those that are lost
SHOWN = 20


def spelling_findings(rows: Sequence[Encoded], tokenizer: Any) -> list[Finding]:
    """The checks on text and tokens."""
    return [_empty(rows, tokenizer), _unknown(rows, tokenizer), _special(rows, tokenizer)]


def _empty(rows: Sequence[Encoded], tokenizer: Any) -> Finding:
    """Responses of which the tokenizer leaves nothing, so that only an end token would be trained."""
    check, special = Check("tokens", "responses without tokens"), special_ids(tokenizer)
    answers = [row for row in rows if row.response is not None]
    if not answers:
        return check.skipped("there are no responses")
    return check.rows(
        [row.source for row in answers if not set(row.alone) - special],
        len(answers),
        bad="have a response of which the tokenizer leaves no token",
        fine="the tokenizer writes every response",
        advice="delete these rows, or take a model whose tokenizer knows their characters",
        level="error",
    )


def special_ids(tokenizer: Any) -> set[int]:
    """The ids of all special tokens, but not of the unknown one."""
    added = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    return (set(tokenizer.all_special_ids) | added) - {tokenizer.unk_token_id}


def _unknown(rows: Sequence[Encoded], tokenizer: Any) -> Finding:
    """Letters and digits that cannot be read back from the tokens."""
    check = Check("tokens", "text that is read back")
    texts: dict[str, str] = {}
    for row in rows:
        for text in _contents(row):
            texts.setdefault(text, row.source)
    lost = [text for text in texts if _missing(text, tokenizer)]
    if not lost:
        return check.ok("every letter and digit can be read back from the tokens")
    characters = Counter(c for text in lost for c in text if c.isalnum())
    alone = [c for c, _ in characters.most_common(PROBED) if _missing(c, tokenizer)]
    seen = f": {''.join(sorted(alone[:SHOWN]))}" if alone else ""
    said = f"{share(len(lost), len(texts), 'texts')} hold letters or digits that the tokenizer loses{seen}"
    advice = "take a model whose tokenizer knows these characters; what it loses the model cannot read"
    level: Level = "error" if len(lost) > len(texts) / 2 else "warning"
    return check.bad(level, said, advice, (texts[text] for text in lost), texts=len(lost), lost=alone)


def _missing(text: str, tokenizer: Any) -> Counter[str]:
    """Letters and digits of the text that its tokens do not give back."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    known = [i for i in ids if i != tokenizer.unk_token_id]
    return _letters(text) - _letters(str(tokenizer.decode(known)))


def _letters(text: str) -> Counter[str]:
    """Letters and digits without case and accents, which some tokenizers do away with on purpose."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return Counter(character for character in plain if character.isalnum())


def _contents(row: Encoded) -> Iterator[str]:
    """The texts of the prompt and of the response."""
    for turn in as_conversation(row.prompt):
        yield turn.content
    if row.response is not None:
        yield row.response


def _special(rows: Sequence[Encoded], tokenizer: Any) -> Finding:
    """Text that the tokenizer takes for a special token; at a response's very end an end token is right."""
    check, special = Check("tokens", "special tokens in the text"), special_ids(tokenizer)
    names = [str(tokenizer.convert_ids_to_tokens(i)) for i in special]
    spelled = re.compile(
        "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or r"(?!)"
    )
    end = tokenizer.eos_token or ""
    found: Counter[str] = Counter()
    places = []
    for row in rows:
        texts = [text.rstrip().removesuffix(end) if text is row.response else text for text in _contents(row)]
        hit = [name for text in texts for name in _taken_for_special(text, spelled, special, tokenizer)]
        found.update(set(hit))
        places += [row.source] * bool(hit)
    if not places:
        return check.ok("no text spells a special token")
    said = f"{share(len(places), len(rows), 'sequences')} hold text that becomes a special token: "
    said += ", ".join(f"{name} in {count:,}" for name, count in found.most_common(5))
    advice = "take it out of the text: it can end an answer early, or begin a turn that nobody spoke"
    return check.bad("warning", said, advice, places, rows=len(places), tokens=dict(found))


def _taken_for_special(text: str, spelled: re.Pattern[str], special: set[int], tokenizer: Any) -> list[str]:
    """The special tokens in a text; only what is spelled like one is tokenised."""
    if not spelled.search(text):
        return []
    ids = set(tokenizer(text, add_special_tokens=False).input_ids) & special
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(ids)]
