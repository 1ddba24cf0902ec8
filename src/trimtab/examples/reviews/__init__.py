"""The built-in example: film-review sentences that people called good or bad, and a small model."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""The base model: a Llama of about three million parameters that writes film reviews."""

COMPARISON = Path(__file__).parent / "compare.yaml"
"""The comparison that `trimtab compare reviews` runs."""
