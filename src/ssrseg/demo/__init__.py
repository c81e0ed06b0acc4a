"""The demo: two embedded sets of two domains each, students of their sources, and a small frozen encoder."""
