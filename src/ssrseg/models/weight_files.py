"""Weight files: read without executing anything, and the network in them found, however others have wrapped it.

Nested mappings and prefixes of names are one thing here: `{"teacher": {"module.conv.bias": ...}}` holds
`teacher.module.conv.bias`, and a network is all that lies under a *path*, here `teacher.module`.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ssrseg.errors import UserError, first_line

PLAIN = (
    *("state_dict", "model", "model_state_dict", "model_state", "weights", "params", "net", "network"),
    *("student", "learner"),
)
"""Of several networks in a file, the first whose path has one of these words is taken; without any, none is."""
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Words that torch puts anywhere into names: they are taken out."""
OTHER_STATE = re.compile(r"optim|.*sched|.*scaler$|amp$|loops$|callbacks$|generators$|observers$")
"""Of a mapping with tensors that are no weights."""
ENOUGH = 0.9
"""Share of what fits best in a file, or of a backbone, that makes a network in a file, or a fit."""
UNPICKLE = """\
python -c "import torch; plain = lambda v: v.state_dict() if hasattr(v, 'state_dict') else v; \
keep = lambda v: {{k: keep(plain(w)) for k, w in v.items() if isinstance(plain(w), (dict, torch.Tensor))}} \
if isinstance(v, dict) else v; \
torch.save(keep(plain(torch.load('{path}', map_location='cpu', weights_only=False))), 'weights.pth')\""""


@dataclass(frozen=True)
class WeightFile:
    """The tensors in a file by their whole names, and what its authors wrote beside them."""

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]
    where: str
    """For messages."""
    wrappers: tuple[str, ...] = ()
    """Those of `WRAPPERS` that were taken out of the names."""


@dataclass(frozen=True)
class Network:
    """What lies under one path of a file."""

    path: str
    """Empty, or with a dot at its end."""
    tensors: Mapping[str, Tensor]
    others: Mapping[str, str]
    """Path of each further network in the file that fits as well -> its name."""


def read_weights(source: WeightFile | Mapping[str, Any] | Path | str) -> WeightFile:
    """Read the tensors in a file, or in the content of one. Nothing in it is executed.

    Raises:
        UserError: no such file, not a weights file, or one that holds more than tensors and plain values.
    """
    if isinstance(source, WeightFile):
        return source
    where = "The checkpoint" if isinstance(source, Mapping) else str(source)
    found = source if isinstance(source, Mapping) else _read(Path(source))
    tensors = dict(_flat(found))
    if not tensors:
        raise UserError(f"{where} should hold names and tensors; found {', '.join(map(repr, found)) or 'nothing'}.")
    plain = {".".join(word for word in name.split(".") if word not in WRAPPERS): name for name in tensors}
    if len(plain) < len(tensors):  # both with and without
        plain = {name: name for name in tensors}
    wrappers = tuple(word for word in WRAPPERS if any(word in name.split(".") for name in tensors))
    meta = found["meta"] if isinstance(found.get("meta"), Mapping) else {}
    return WeightFile({name: tensors[whole] for name, whole in plain.items()}, meta, where, wrappers)


def _flat(tree: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield f"{path}{key}", value
        elif isinstance(value, Mapping) and not OTHER_STATE.match(str(key)):
            yield from _flat(value, f"{path}{key}.")


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (why := _instead(path)) is not None:
            raise UserError(f"{path} is not a weights file: {why}") from error
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the Python object {named[1]}" if named else "something other than tensors and plain values"
        raise UserError(
            f"{path} is a pickle that holds {what}; loading it could run any code, so it is not loaded.\n"
            "If you trust it, keep only its weights, in the environment that made it:\n"
            f"  {UNPICKLE.format(path=path)}"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        why = _instead(path) or f"{first_line(error)} It may be cut off: fetch it again."
        raise UserError(f"{path} is not a weights file: {why}") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} should hold names and tensors, found {type(found).__name__}.")
    return found


def _instead(path: Path) -> str | None:
    """Say what lies where weights should, and what to do; nothing where it looks like a pickle or an archive."""
    with path.open("rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        return "it is Git LFS' pointer to one. Fetch the file itself: git lfs pull"
    if start.lstrip().startswith(b"<"):
        return "it is a web page, which may say why. Fetch the file itself."
    if not start.startswith((b"\x80", b"PK")) and path.suffix != ".safetensors":
        return f"it begins with {start!r}. Fetch or name another."
    return None


def find_network(
    file: WeightFile, fit: Callable[[Mapping[str, Tensor]], float], *, part: str | None = None, setting: str = "part="
) -> Network:
    """Find the network in a file.

    Args:
        file: of `read_weights`.
        fit: how much of what is wanted some weights are: from 0 to about 1.
        part: its path, or the end of its path, where there are several.
        setting: how the user chooses `part`, for messages.

    Raises:
        UserError: there is no such part; or there are several networks, none of them under a word of `PLAIN`.
    """
    paths = Counter(path for name in file.tensors for path in _beginnings(name))
    networks = _networks(file, paths, fit)
    names = _names(networks)
    if part is not None:
        asked = [path for path in paths if f".{path}".endswith(f".{part}.")]
        if not asked:
            held = ", ".join(filter(None, names.values())) if len(names) > 1 else "a single network: leave it out"
            raise UserError(f"{file.where} has no {part!r}; it holds {held}.")
        root = min(asked, key=lambda path: path.count("."))
        below = {path: count for path, count in paths.items() if path.startswith(root)}
        networks = [path for path in networks if path.startswith(root)] or _networks(file, below, fit) or [root]
    elif not networks:
        networks = [next((f"{word}." for word in PLAIN if f"{word}." in paths), "")]
    ranks = _ranks(networks)
    chosen, *rest = sorted(networks, key=lambda path: (ranks[path], path.count(".")))
    if rest and ranks[rest[0]] == ranks[chosen]:
        choices = "".join(f"\n  {setting}{names.get(path) or path[:-1]}" for path in networks)
        raise UserError(f"{file.where} holds {len(networks)} networks that fit. Choose one:{choices}")
    others = {path: name for path, name in names.items() if path != chosen}
    return Network(chosen, _under(file, chosen, but=(path for path in others if path.startswith(chosen))), others)


def _beginnings(name: str) -> Iterator[str]:
    yield ""
    yield from (name[: dot.end()] for dot in re.finditer(r"\.", name))


def _under(file: WeightFile, path: str, but: Iterable[str] = ()) -> dict[str, Tensor]:
    left = tuple(but)
    inside = {name: value for name, value in file.tensors.items() if name.startswith(path)}
    return {name[len(path) :]: value for name, value in inside.items() if not name.startswith(left)}


def _networks(file: WeightFile, paths: Mapping[str, int], fit: Callable[[Mapping[str, Tensor]], float]) -> list[str]:
    """Return the paths whose weights fit nearly as well as the best, without those that are a part of another one.

    It is the best alone where less than half is there, and none where hardly anything is.
    """
    scores = dict[str, float]()
    least = max(paths.values()) / 20  # what is less of a file is no network, and there are many such paths
    outermost_first = sorted(paths, key=lambda path: (-paths[path], path.count(".")))
    for path in outermost_first:
        if paths[path] >= least:
            scores[path] = fit(_under(file, path))
    best = max(scores, key=lambda path: scores[path])
    if scores[best] < 0.5:
        return [best] if scores[best] > 0.1 else []
    enough = ENOUGH * scores[best]
    found: list[str] = []
    for path in outermost_first:
        if scores.get(path, 0) < enough:
            continue
        around = next((outer for outer in found if path.startswith(outer)), None)
        if around is None or fit(_under(file, around, but=[path])) >= enough:  # a network beside, not a part
            found.append(path)
    return found


def _names(paths: Iterable[str]) -> dict[str, str]:
    """Name paths by what they do not share."""
    words = {path: path.split(".")[:-1] for path in paths}
    shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*words.values(), strict=False))))
    return {path: ".".join(parts[shared:]) for path, parts in words.items()}


def _ranks(paths: Iterable[str]) -> dict[str, int]:
    """Rank networks by the words that they do not share: by their places in `PLAIN`; what has none comes first."""
    words = {path: set(path.split(".")[:-1]) for path in paths}
    shared = set.intersection(*words.values())
    places = {path: [PLAIN.index(word) for word in (own - shared) & set(PLAIN)] for path, own in words.items()}
    return {path: min(places[path], default=len(PLAIN) if words[path] - shared else -1) for path in words}
