"""The demo: two procedural street domains that need no download, and a small frozen encoder."""
