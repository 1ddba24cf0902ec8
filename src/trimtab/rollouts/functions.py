"""A reward that the user wrote: a function of a Python file."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from pathlib import Path
from traceback import extract_tb
from typing import Any

from trimtab.errors import UserError, nearest
from trimtab.feedback.records import Prompt
from trimtab.rollouts.verifiers import Columns


class FunctionError(Exception):
    """What a user's file raised, as a sentence that names the file and its last line."""


class Function:
    """A function of a user's file, called as f(prompts, responses, **columns).

    It gets plain values, as they stand in JSON: a prompt is text, or a list of {"role", "content"} as in TRL;
    a response is text; a column is a list with one value for each response, None where a record lacks it.
    Of the columns it gets those that its signature names after the first two arguments, or all if it takes
    **kwargs. It returns one number for each response.

    Raises UserError if there is no such function or its arguments cannot be these; when called, UserError if
    a column that it requires is missing, FunctionError if it raises.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        with _blamed_on(path):
            self.function = _find(path, name)
            parameters = list(signature(self.function).parameters.values())
        kinds = {parameter.kind for parameter in parameters}
        texts = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:2]
        first = texts[0].name if texts else "prompts"
        too_few = len(texts) < 2 and Parameter.VAR_POSITIONAL not in kinds
        # A function for TRL may begin so; called with prompts first, it would score the wrong texts.
        if too_few or first in ("completions", "responses"):
            raise UserError(
                f"{path}: {name}({', '.join(p.name for p in parameters)}) must take the prompts and the "
                "responses as its first two arguments; define it as f(prompts, responses, ...)"
            )
        self.texts = {p.name for p in texts}  # no columns
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.named = {p.name: p.default is p.empty for p in named if p.name not in self.texts}
        self.takes_all = Parameter.VAR_KEYWORD in kinds

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns | None = None
    ) -> Sequence[float]:
        arguments = self._arguments(columns or {})
        try:
            given = self.function([plain(prompt) for prompt in prompts], list(responses), **arguments)
            return list(given) if isinstance(given, Iterator) else given
        except Exception as error:  # it is the user's code, and may raise anything
            raise FunctionError(_blame(self.path, error)) from error

    def _arguments(self, columns: Columns) -> dict[str, list[Any]]:
        """The columns that the function takes. Raises UserError if one is missing that it requires."""
        for name, required in self.named.items():
            if required and name not in columns:
                raise UserError(
                    f"{self.path}: {self.name} needs the column {name!r}, which the records lack; they have "
                    f"{', '.join(columns) or 'none'}; add it to the data or give the argument a default"
                )
        taken = columns.keys() - self.texts if self.takes_all else columns.keys() & self.named.keys()
        return {name: list(values) for name, values in columns.items() if name in taken}


def plain(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as it stands in JSON."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": turn.role, "content": turn.content} for turn in prompt]


def _find(path: Path, name: str) -> Callable[..., Any]:
    """The function of that name. Raises UserError if file or function is missing."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file; pass a reward function as file.py:name")
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    functions = {key: value for key, value in vars(module).items() if callable(value) and key[0] != "_"}
    if name not in functions:
        raise UserError(f"{path}: has no function {name!r}; {nearest(name, functions)}")
    return functions[name]


@contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    """Turns what loading the user's file raises into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(_blame(path, error)) from error


def _blame(path: Path, error: Exception) -> str:
    """A sentence with the file and its last line that the error passed through."""
    frames = extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.resolve()]
    place = f"{path}:{lines[-1]}" if lines else str(path)
    return f"{place}: the reward failed with {type(error).__name__}: {error}"
