"""What is in the feedback: the numbers of `trimtab data show` and how they are shown."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, quantiles
from typing import TYPE_CHECKING

from trimtab.feedback.conversions import by_prompt
from trimtab.feedback.readers import Reading, RejectedRow
from trimtab.feedback.records import Kind, Record, as_conversation, printable
from trimtab.feedback.suspicious import Finding, findings
from trimtab.feedback.views import VIEWS, available

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


@dataclass(frozen=True)
class Spread:
    """How numbers are spread, from the smallest to the largest."""

    least: float
    median: float
    ninth_decile: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """The spread of at least one number."""
        found = list(values)
        if len(found) == 1:
            found *= 2  # quantiles needs two
        deciles = quantiles(found, n=10, method="inclusive")
        return cls(min(found), deciles[4], deciles[8], max(found))


@dataclass(frozen=True)
class Summary:
    """What is in some feedback."""

    name: str
    rows: int
    shapes: dict[str, int]  # recognised shape -> rows
    kinds: dict[Kind, int]
    prompts: int  # distinct ones
    conversations: int  # records whose prompt is a conversation
    spreads: dict[str, Spread]  # of lengths and counts
    judgements: dict[str, str]  # what people said: balance of labels, ties, scores, margins
    examples: tuple[Record, ...]  # the first record of each kind
    findings: tuple[Finding, ...]
    rejected: tuple[RejectedRow, ...]
    without_feedback: int  # rows that are well formed but yield no record

    @property
    def becomes(self) -> dict[Kind, list[tuple[Kind, str]]]:
        """For each kind of record here: what it can become, and what that assumes."""
        return {
            kind: [(to, VIEWS[kind, to].assumes) for to in available(kind) if to != kind]
            for kind in self.kinds
        }


def summary(reading: Reading) -> Summary:
    """Counts, lengths, balance and suspicious rows of what `trimtab.feedback.readers.scan` found."""
    records = reading.records
    return Summary(
        name=reading.name,
        rows=reading.rows,
        shapes=dict(reading.shapes.most_common()),
        kinds=dict(Counter(record.kind for record in records).most_common()),
        prompts=len({record.prompt for record in records}),
        conversations=sum(not isinstance(record.prompt, str) for record in records),
        spreads=_spreads(records),
        judgements=_judgements(records),
        examples=tuple({record.kind: record for record in reversed(records)}.values()),
        findings=tuple(findings(records)),
        rejected=tuple(reading.rejected),
        without_feedback=reading.without_feedback,
    )


def _spreads(records: Sequence[Record]) -> dict[str, Spread]:
    """The spreads of what there is: an empty list has none."""
    prompts = [as_conversation(record.prompt) for record in records]
    values: dict[str, list[float]] = {
        "prompt, characters": [sum(len(turn.content) for turn in prompt) for prompt in prompts],
        "prompt, turns": [len(r.prompt) for r in records if not isinstance(r.prompt, str)],
        "response, characters": [len(text) for record in records for text in record.responses],
        "responses to a prompt": [
            sum(len(r.responses) for r in group) for group in by_prompt(records).values()
        ],
        "score": [score for record in records for score in record.scores],
        "margin": [record.margin for record in records if record.margin is not None],
    }
    return {name: Spread.of(found) for name, found in values.items() if found}


def _judgements(records: Sequence[Record]) -> dict[str, str]:
    found = {}
    labels = [bool(record.desirable) for record in records if record.kind == "thumbs"]
    if labels:
        found["desirable"] = f"{sum(labels):,} of {len(labels):,} thumbs ({mean(labels):.0%})"
    ranks = [record.ranks for record in records if record.kind == "ranking"]
    if ranks:
        tied = sum(len(set(rank)) < len(rank) for rank in ranks)
        found["with ties"] = f"{tied:,} of {len(ranks):,} rankings ({tied / len(ranks):.0%})"
    pairs = [record.responses for record in records if record.kind == "pair"]
    if pairs:
        longer = sum(len(chosen) > len(rejected) for chosen, rejected in pairs)
        found["chosen is longer"] = f"{longer:,} of {len(pairs):,} pairs ({longer / len(pairs):.0%})"
    return found


def show(found: Summary, width: int = 160) -> "RenderableType":
    """The summary as rich shows it, in 80 columns or more.

    width: characters of a prompt or response that an example shows.
    """
    from rich.console import Group

    parts = [_overview(found), _spread_table(found), _becomes_table(found)]
    parts += [_example(record, width) for record in found.examples]
    if found.findings:
        parts.append(_findings_table(found))
    if found.rejected:
        parts.append(_rejected_table(found))
    return Group(*parts)


def _table(title: str, *headings: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    table.show_header = bool(headings)
    return table


def _overview(found: Summary) -> "Table":
    from rich.markup import escape

    table = _table(escape(found.name))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row(
        "rows", f"{found.rows:,}" + (f", {len(found.rejected):,} of them bad" if found.rejected else "")
    )
    if found.without_feedback:
        table.add_row("without feedback", f"{found.without_feedback:,} rows (no two ranked responses)")
    table.add_row("shape", ", ".join(f"{escape(name)} ({count:,})" for name, count in found.shapes.items()))
    table.add_row("records", ", ".join(f"{count:,} {kind}" for kind, count in found.kinds.items()) or "none")
    table.add_row(
        "prompts", f"{found.prompts:,} different; {found.conversations:,} records are conversations"
    )
    for name, said in found.judgements.items():
        table.add_row(name, said)
    return table


def _spread_table(found: Summary) -> "Table":
    table = _table("Lengths and counts", "", "least", "median", "90 %", "most")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, s in found.spreads.items():
        table.add_row(name, *(f"{value:,.6g}" for value in (s.least, s.median, s.ninth_decile, s.most)))
    return table


def _becomes_table(found: Summary) -> "Table":
    table = _table("What it can become", "from", "to", "assumes")
    for kind, targets in found.becomes.items():
        for to, assumes in targets:
            table.add_row(kind, to, assumes)
    return table


def _example(record: Record, width: int) -> "Table":
    from rich.markup import escape
    from rich.text import Text

    table = _table(escape(f"Example: {record.kind} ({record.source})"))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for turn in as_conversation(record.prompt):
        table.add_row(
            "prompt" if isinstance(record.prompt, str) else turn.role, Text(_shorten(turn.content, width))
        )
    for name, response in zip(_response_names(record), record.responses, strict=True):
        table.add_row(name, Text(_shorten(response, width)))
    return table


def _response_names(record: Record) -> list[str]:
    if record.kind == "pair":
        return ["chosen", "rejected"]
    if record.kind == "ranking":
        return [f"rank {rank}" for rank in record.ranks]
    if record.kind == "score":
        return [f"score {score:g}" for score in record.scores]
    if record.kind == "thumbs":
        return ["desirable" if record.desirable else "undesirable"]
    return ["response"] * len(record.responses)


def _shorten(text: str, width: int) -> str:
    line = printable(" ".join(text.split()), len(text))
    return line if len(line) <= width else line[: width - 1] + "…"


def _findings_table(found: Summary) -> "Table":
    from rich.text import Text

    table = _table("Look at these", "records", "what", "where")
    for finding in found.findings:
        more = ", …" if finding.count > len(finding.sources) > 0 else ""
        table.add_row(
            f"{finding.count:,} of {finding.of:,}", finding.what, Text(places_in(finding.sources) + more)
        )
    return table


def places_in(sources: Sequence[str]) -> str:
    """The lines alone where all are in one file."""
    files = {source.rpartition(":")[0] for source in sources}
    if len(files) != 1 or "" in files:
        return ", ".join(sources)
    return "line " + ", ".join(source.rpartition(":")[2] for source in sources)


def _rejected_table(found: Summary, most: int = 10) -> "Table":
    from rich.text import Text

    table = _table(f"Bad rows: {len(found.rejected):,}", "where", "why")
    for bad in found.rejected[:most]:
        table.add_row(Text(bad.source), Text(bad.reason))
    if len(found.rejected) > most:
        table.add_row("…", f"{len(found.rejected) - most:,} more")
    return table
