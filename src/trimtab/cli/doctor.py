"""`trimtab doctor`: looks at the data, the tokens, the numbers and the memory before training does."""

import contextlib
import dataclasses
import json
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro
from rich.table import Table
from rich.text import Text

from trimtab.cli.options import parse, value_of
from trimtab.doctor.findings import Finding, Level, exit_status
from trimtab.doctor.run import GROUPS, Examination, Group, examine, verdict
from trimtab.feedback.conversions import ViewOptions
from trimtab.feedback.inspect import places_in
from trimtab.feedback.suspicious import SHOWN
from trimtab.jobs import DataConfig
from trimtab.methods import Method, find
from trimtab.online import OnlineConfig
from trimtab.online_jobs import CriticConfig
from trimtab.policies.load import ModelConfig
from trimtab.rollouts.collect import CollectConfig
from trimtab.terminal import console, errors, quiet_libraries
from trimtab.train import RunConfig

DESCRIPTION = """Looks before training does: is the data sound, do the tokens mean what the data says, do the
model's numbers agree with themselves, does it fit into memory?

With --method it takes that method's options too, and looks at the data as the method learns from it.
The exit status is 0 if all is well, 1 for warnings, 2 for errors."""

STYLES: dict[Level, str] = {"ok": "green", "skipped": "dim", "warning": "yellow", "error": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of the doctor itself."""

    method: str | None = None
    """The method that is to learn from the data; without one the data is looked at by itself."""
    held_out: str | None = None
    """The file that the model will be judged on, to look for prompts that are in both."""
    only: list[Group] = field(default_factory=list)
    """Groups of checks: data, tokens, numerics, fit; all if not given."""
    json: bool = False
    """Print one JSON object: verdict, status, and the findings with their numbers."""


def run(words: list[str]) -> int:
    """Prints the findings; returns the exit status."""
    name = value_of("method", words) if words else None
    method = find(name) if name is not None else None
    options = parse(options_of(method), words, prog="trimtab doctor", description=DESCRIPTION)
    quiet_libraries()
    asked: Asked = options.asked
    # whatever a library prints is no finding
    with contextlib.redirect_stdout(sys.stderr), errors.status("looking at the data") as status:
        found = examine(_examination(options), lambda group: status.update(f"looking at {group}"))
    status_code = exit_status(found)
    if asked.json:
        rows = [finding.row() for finding in found]
        whole = {"verdict": verdict(found), "status": status_code, "findings": rows}
        print(json.dumps(whole, ensure_ascii=False, indent=2, default=str))
    else:
        console.print(table(found))
        console.print(Text(verdict(found), style=STYLES[worst(found)]))
    return status_code


def options_of(method: type[Method[Any]] | None) -> type[Any]:
    """The options with those of a method's training, each under its own name."""
    online = method is not None and method.online
    parts: dict[str, Any] = {"asked": Asked, "model": ModelConfig, "data": DataConfig, "views": ViewOptions}
    parts["run"] = OnlineConfig if online else RunConfig
    if online:
        parts |= {"collect": CollectConfig, "critic": CriticConfig}
    if method is not None:
        parts["parameters"] = method
    fields: list[Any] = []
    for name, cls in parts.items():
        flat: Any = Annotated[cls, tyro.conf.arg(name="")]
        required = cls in (ModelConfig, DataConfig)
        fields.append((name, flat) if required else (name, flat, field(default_factory=cls)))
    return dataclasses.make_dataclass("DoctorOptions", fields, kw_only=True, frozen=True)


def _examination(options: Any) -> Examination:
    asked: Asked = options.asked
    return Examination(
        model=options.model,
        data=options.data,
        views=options.views,
        run=options.run,
        method=getattr(options, "parameters", None),
        collect=getattr(options, "collect", None),
        critic=getattr(options, "critic", None),
        held_out=asked.held_out,
        groups=tuple(asked.only) or GROUPS,
    )


def worst(findings: list[Finding]) -> Level:
    """The level that decides the exit status."""
    return ("ok", "warning", "error")[exit_status(findings)]


def table(findings: list[Finding]) -> Table:
    """The findings group by group; what is to be done, and where, under each that is not fine."""
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for group in GROUPS:
        of_group = [finding for finding in findings if finding.group == group]
        if of_group:
            shown.add_row(Text(group, style="bold"))
        for finding in of_group:
            mark = Text(f"  {finding.level}", style=STYLES[finding.level])
            shown.add_row(mark, finding.check, _sentence(finding))
        if of_group:
            shown.add_row()
    return shown


def _sentence(finding: Finding) -> Text:
    text = Text(finding.said, style="" if finding.level in ("warning", "error") else "dim")
    if finding.places:
        more = ", …" if finding.values.get("rows", 0) > SHOWN else ""
        text.append(f"\n{places_in(finding.places)}{more}", style="dim")
    if finding.advice:
        text.append(f"\n→ {finding.advice}")
    return text
