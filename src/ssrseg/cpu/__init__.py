"""What a CPU needs; a GPU never enters."""
