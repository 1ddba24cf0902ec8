"""The methods, one file each. All are found by import; packages add theirs by the entry point group
`trimtab.methods`, naming a module whose import registers them.
"""

from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from trimtab.methods.base import METHODS, Method, find, method

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
for _entry in entry_points(group="trimtab.methods"):
    _entry.load()

__all__ = ["METHODS", "Method", "find", "method"]
