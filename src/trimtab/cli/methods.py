"""`trimtab methods`: the summary table, from the registry."""

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from trimtab.errors import UserError
from trimtab.methods import METHODS, Method, find
from trimtab.methods.base import STAGES
from trimtab.presets import serves_environments
from trimtab.terminal import console

DATA = {
    "demonstration": "demonstrations",
    "pair": "A/B choices",
    "ranking": "rankings",
    "thumbs": "thumbs",
    "score": "scores",
    "prompt": "prompts",
}


def run(words: list[str]) -> int:
    """Prints the table of methods, or as Markdown with --markdown."""
    if words and words[0] in ("-h", "--help"):
        print("usage: trimtab methods [--markdown]\n\nThe methods: what they train on, need, and are for.")
        return 0
    if words == ["--markdown"]:
        print(markdown())
        return 0
    if words:
        find(words[0])
        raise UserError(f"trimtab methods takes no name; `trimtab train {words[0]} --help` shows that method")
    table = Table(show_lines=True, box=box.SIMPLE)
    for heading in ("method", "takes"):
        table.add_column(heading, no_wrap=True)
    table.add_column("when to use it, and where its equation stands")
    for method in in_order():
        name, stage, data, needs, online, source, when = cells(method)
        first = Text(name, style="bold").append(f"\n{stage}\n{online}", style="not bold dim")
        second = Text(data).append(f"\nneeds {needs}", style="dim")
        table.add_row(first, second, Text(when).append(f"\n{source}", style="dim"))
    console.print(table)
    return 0


def in_order() -> list[type[Method[Any]]]:
    """The methods by stage, in the order in which one uses them."""
    return sorted(METHODS.values(), key=lambda method: (STAGES.index(method.stage), method.name))


HEADINGS = ("method", "stage", "data", "needs", "online", "equation", "when to use it")


def cells(method: type[Method[Any]]) -> list[str]:
    """A method's line of the table."""
    needs = [
        name
        for name, needed in (
            ("reference", method.needs_reference),
            ("a reward", method.needs_reward_model),
        )
        if needed
    ]
    return [
        method.name,
        method.stage,
        DATA[method.data] + (" or an environment" if serves_environments(method.name) else ""),
        " and ".join(needs) or "nothing",
        "online" if method.online else "offline",
        method.source,
        method.when,
    ]


def markdown() -> str:
    """The table as Markdown, for the docs."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(cells(method)) + " |" for method in in_order()]
    return "\n".join(lines)
