"""What lies in a folder beside the files that its globs match, for messages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from ssrseg.data.storage import list_files, list_members

FOLDERS, NAMED = 3, 8
"""Folders and files that a message names."""
LABELS = re.compile("label|mask|annot|segm|truth|(^|/)(gt|ann|lbl)", re.IGNORECASE)
"""What folders of labels are called."""
NO_PICTURES = {
    *(".txt", ".md", ".json", ".xml", ".csv", ".yaml", ".yml", ".html", ".pdf", ".log", ".db", ".ini", ".zip", ".aux"),
    *(".prj", ".tfw", ".jgw", ".pgw", ".wld", ".ovr", ".sh", ".py", ".rst", ".lnk", ".url", ".part", ".sha256", ".md5"),
}
"""Endings of what commonly lies beside pictures."""


def _files(root: Path, below: str = "") -> list[tuple[PurePosixPath, Path]]:
    """List the files in a folder or archive but hidden ones, by their names below `root`."""
    found = [*list_files(root, below), *list_members(root, below)]
    return [(PurePosixPath(name), path) for name, path in found if not path.name.startswith(".")]


def what_is_there(root: Path, endings: Collection[str], kind: str = "images", domain: str = "") -> str:
    """Say which folders below `root` hold files of these endings, and the glob of the one that is most like a kind.

    It is given as the word that sets it, of the data set `domain` if there is one.
    """
    found = Counter(str(name.parent) for name, _ in _files(root) if name.suffix.lower() in endings)
    likely = sorted(found, key=lambda folder: (bool(LABELS.search(folder)) != (kind == "labels"), -found[folder]))
    counts = {folder: found[folder] for folder in likely}
    if not counts:
        others = Counter(name.suffix.lower() or "no ending" for name, _ in _files(root))
        listed = ", ".join(f"{ending} {count}" for ending, count in others.most_common(5))
        return f"It holds no image{f', but files of other kinds: {listed}' if listed else ' at all'}."
    places = [*counts.items()][:FOLDERS]
    listed = ", ".join(
        f"{count} in {'the folder itself' if folder == '.' else folder + '/'}" for folder, count in places
    )
    glob = "*" if places[0][0] == "." else f"{places[0][0]}/*"
    more = f" and {len(counts) - FOLDERS} more folders" if len(counts) > FOLDERS else ""
    word = f"'{domain}.{kind}={glob}'" if domain and " " not in domain else f"'{kind}={glob}'"
    return f"It holds images: {listed}{more}. If the first are meant: {word}."


def unread_files(root: Path, glob: str, endings: Collection[str]) -> list[Path]:
    """List the files in the folders before a glob's first wildcard whose endings are not read, sorted."""
    fixed = glob.partition("*")[0].rpartition("/")[0]
    return sorted(path for name, path in _files(root, fixed) if name.suffix.lower() not in {*endings, *NO_PICTURES})


def fitting(root: Path, glob: str, images: Collection[Path], endings: Collection[str]) -> dict[Path, Path]:
    """Find files of endings that are not read, but whose names begin with an image's, for `images` without label."""
    fixed = glob.partition("*")[0].rpartition("/")[0]
    others = {name.stem: path for name, path in _files(root, fixed) if name.suffix.lower() not in endings}
    found = {image: others.get(image.stem) for image in images}
    return {image: other for image, other in found.items() if other is not None}


def common_affix(images: Sequence[Path], labels: Sequence[Path]) -> tuple[str, str] | None:
    """Find what stands before and after an image's stem in the names of all labels, as `_mask`; nothing without."""
    stems, names = {path.stem for path in images}, [path.stem for path in labels]
    for name in names[:1]:
        for stem in sorted((stem for stem in stems if stem in name), key=len, reverse=True):
            before, _, after = name.partition(stem)
            if all(n.startswith(before) and n.endswith(after) for n in names) and stems <= {
                n[len(before) : len(n) - len(after)] for n in names
            }:
                return before, after
    return None


def name_files(files: Sequence[Path]) -> str:
    """Count files by their endings, with some of their names."""
    counts = Counter(path.suffix.lower() or "no ending" for path in files)
    listed = ", ".join(f"{ending} {count}" for ending, count in counts.most_common())
    some = ", ".join(path.name for path in files[:NAMED]) + (" ..." if len(files) > NAMED else "")
    return f"{len(files)} file{'s' if len(files) > 1 else ''} ({listed}): {some}"
