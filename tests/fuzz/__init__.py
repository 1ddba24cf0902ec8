"""Bad input of every kind: what is made, what must hold of it, and the campaign that `make fuzz` runs."""
