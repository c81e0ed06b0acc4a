"""Observers of a run: they record, evaluate, draw, warn and stop; the loop calls each of them at every step."""
