"""Print what CHANGELOG.md says of one version: the notes of its release.

python tools/release_notes.py 0.2.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"


def release_notes(version: str) -> str:
    """Return the section of a version, without its heading, or end the program where there is none."""
    _, *sections = re.split(r"^## ", CHANGELOG.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {section.split()[0]: section.partition("\n")[2].strip() for section in sections}
    if not found.get(version):
        sys.exit(f"CHANGELOG.md says nothing of {version}: expected one of {', '.join(found)}.")
    return found[version]


if __name__ == "__main__":
    print(release_notes(sys.argv[1].removeprefix("v")))
