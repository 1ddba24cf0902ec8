"""A world so small that every optimum in it is known: `python -m trimtab.truth`."""
