"""What a run leaves on disk. Needs no torch."""
