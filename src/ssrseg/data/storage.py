"""Where files lie: their bytes."""

from __future__ import annotations

from pathlib import Path

from ssrseg.errors import UserError


def read_bytes(path: Path) -> bytes:
    """All of a file; raises `UserError` when it is missing, unreadable or empty."""
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if not encoded:
        raise UserError(f"{path} is empty (0 bytes).")
    return encoded
