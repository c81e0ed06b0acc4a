"""`check-data`: everything that is wrong with the data of a run, before it starts."""
