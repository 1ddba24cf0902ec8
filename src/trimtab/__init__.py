"""trimtab steers a model with feedback: every method on the same footing."""
