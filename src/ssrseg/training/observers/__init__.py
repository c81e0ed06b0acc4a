"""What watches a run: each is told of every step and may write, stop or warn."""
