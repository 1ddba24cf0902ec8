"""Checks on tokens: where sequences begin and end, where the response begins, and what is special in them."""

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from trimtab.doctor.encoded import MOST, Encoded, encoded_rows, evenly
from trimtab.doctor.findings import Check, Finding, share
from trimtab.doctor.lengths import Limits, length_findings
from trimtab.doctor.material import Material, listening
from trimtab.doctor.spelling import spelling_findings
from trimtab.doctor.templates import template_findings
from trimtab.errors import UserError
from trimtab.feedback.tokenise import end_tokens


def token_findings(
    material: Material, tokenizer: Any, limits: Limits, generation_config: Any = None
) -> list[Finding]:
    """Every check on how the tokenizer writes the feedback, in the order in which they are shown.

    generation_config: the model's, which may name further tokens that end a response.
    """
    end = Check("tokens", "end token")
    try:
        stops = end_tokens(tokenizer, generation_config)
        end_tokens(tokenizer)  # what training needs is in the tokenizer
    except UserError as error:
        advice = "set eos_token in tokenizer_config.json; nothing else can be looked at before"
        return [end.bad("error", str(error), advice)]
    with listening():  # what is cut is told by a check of its own
        rows, of = encoded_rows(material.records, tokenizer)
        templates = template_findings(evenly(material.records, MOST), tokenizer)
        lengths = length_findings(material.records, rows, of, tokenizer, limits)
    answers = [row for row in rows if row.response is not None]
    writes = material.method is None or material.method.trains == "policy"
    return [
        _end_token(end, tokenizer, stops),
        *templates,
        _start_token(rows, tokenizer),
        _ends(answers if writes else [], tokenizer, stops),
        _boundary(answers),
        *spelling_findings(rows, tokenizer),
        *lengths,
    ]


def _end_token(check: Check, tokenizer: Any, stops: set[int]) -> Finding:
    name, eos, pad = tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id
    if eos is not None and eos == tokenizer.unk_token_id:
        said = f"the end token {name!r} is the unknown token: the vocabulary does not hold it"
        return check.bad(
            "error", said, "name one that it holds as eos_token in tokenizer_config.json", end=eos
        )
    written = _names(tokenizer, stops)
    also = "; it is the padding too, which is no harm, since trimtab masks by lengths" if pad == eos else ""
    return check.ok(f"responses end with {written}{also}", end_tokens=sorted(stops))


def _names(tokenizer: Any, ids: Sequence[int] | set[int]) -> str:
    return " or ".join(repr(str(tokenizer.convert_ids_to_tokens(i))) for i in sorted(ids))


def _start_token(rows: Sequence[Encoded], tokenizer: Any) -> Finding:
    """Two start tokens, or one that the tokenizer puts before texts and the template leaves out."""
    check, bos = Check("tokens", "start token"), tokenizer.bos_token_id
    if bos is None:
        return check.ok("the tokenizer has none")
    name = repr(tokenizer.bos_token)
    twice = [row.source for row in rows if len(list(takewhile(lambda i: i == bos, row.prompt_ids))) > 1]
    if twice:
        said = f"{share(len(twice), len(rows), 'sequences')} begin with {name} twice"
        advice = f"take {name} out of the text or out of the template; once is what the model knows"
        return check.bad("error", said, advice, twice, rows=len(twice))
    adds = list(tokenizer("a").input_ids)[:1] == [bos]
    talks = [row for row in rows if not isinstance(row.prompt, str)]
    without = [row.source for row in talks if row.prompt_ids[0] != bos]
    if adds and without:
        said = (
            f"{share(len(without), len(talks), 'conversations')} do not begin with {name}, as plain text does"
        )
        advice = "let the template begin with {{ bos_token }}, if the model was trained with it"
        return check.bad("warning", said, advice, without, rows=len(without))
    doubled = adds and any(row.prompt_ids[0] == bos for row in talks)
    note = f"; tokenizer(text) would put a second {name} before what the template writes, trimtab does not"
    return check.ok("no sequence begins with two start tokens" + (note if doubled else ""))


def _ends(answers: Sequence[Encoded], tokenizer: Any, stops: set[int]) -> Finding:
    """Whether what a response is trained to end with is what sampling takes for an end."""
    check = Check("tokens", "end of responses")
    if not answers:
        return check.skipped("there are no responses, or the model is to score them and writes none")
    open_ended = [row for row in answers if row.response_ids[-1] not in stops]
    if open_ended:
        last = Counter(row.response_ids[-1] for row in open_ended).most_common(1)[0][0]
        said = f"{share(len(open_ended), len(answers), 'responses')} end with {_names(tokenizer, [last])}, "
        said += f"but an answer is over at {_names(tokenizer, stops)}: the model will not stop"
        advice = (
            "name the token that the template closes a turn with as eos_token in tokenizer_config.json or as "
            "eos_token_id in generation_config.json, or take it out of the text"
        )
        places = (row.source for row in open_ended)
        return check.bad("error", said, advice, places, rows=len(open_ended), token=last)
    bare = sum(row.alone[-1:] != row.response_ids[-1:] for row in answers)
    return check.ok(
        f"every response ends with an end token; {bare:,} get it from the template or from trimtab"
    )


def _boundary(answers: Sequence[Encoded]) -> Finding:
    """Whether a token of the whole text holds the end of the prompt and the beginning of the response."""
    check = Check("tokens", "boundary")
    looked_at = [row for row in answers if row.whole]
    if not looked_at:
        return check.skipped("there is no text with a prompt and a response")
    merged = [
        row.source for row in looked_at if list(row.whole[: len(row.prompt_ids)]) != list(row.prompt_ids)
    ]
    return check.rows(
        merged,
        len(looked_at),
        bad="have a token that spans the end of the prompt and the beginning of the response, if both are "
        "tokenised as one text; trimtab tokenises them apart, so that what is trained is what is sampled",
        fine="no token spans the end of a prompt and the beginning of its response",
        advice="let prompts end without a space and responses begin with it, as the tokenizer splits words",
    )
