"""Which classes may stand in a training's state; see `states`."""

from typing import Any, TypeVar

T = TypeVar("T")
CLASSES: dict[str, type[Any]] = {}


def stateful(cls: type[T]) -> type[T]:
    """Declares a dataclass that may stand in a state: it is made of states itself."""
    CLASSES[cls.__name__] = cls
    return cls
