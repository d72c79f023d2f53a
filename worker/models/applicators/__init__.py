"""How a model reaches those who use it: one module per way."""
