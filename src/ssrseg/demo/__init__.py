"""The demo: two domains of drawn streets that need no download, and a small frozen encoder."""
