"""What the label files of each data set mean in a run's classes."""

from __future__ import annotations

from collections.abc import Sequence

from ssrseg.config import ClassConfig, DataConfig, Settings
from ssrseg.data.folds import FOLDS, fold_by_name
from ssrseg.data.label_files import LabelCode
from ssrseg.data.label_spaces import SPACES, VALUES, Color, LabelSpace
from ssrseg.data.labels import lookup_table, map_ids, space_of
from ssrseg.data.layouts import Spec, spec_of
from ssrseg.errors import UserError


def resolve_space(settings: Settings) -> LabelSpace:
    """The label space of a run: the one that the settings name, else the source's.

    Raises:
        UserError: unknown, or neither says.
    """
    if settings.classes is not None:
        return space_of(settings.classes)[0]
    name = spec_of(settings.source).space
    if name is None:
        raise UserError(
            "Which classes are there? Set `classes`: a label space "
            f"({', '.join(SPACES)}) or your own names in the order of their ids, e.g. 'classes=[road, car, other]'."
        )
    return SPACES[name]


def code_for(data: DataConfig, settings: Settings) -> LabelCode:
    """How the label files of a data set become class ids of the run.

    The data set's own `id_map` comes first. The classes of a published data set become the run's by the known mapping
    or by what the run's own classes are made `of`, unless those say nothing but raw values (`ids`).

    Raises:
        UserError: the layout has other classes than the run, and nothing says how they become the run's.
    """
    spec, space = spec_of(data), resolve_space(settings)
    own = space_of(settings.classes)[1] if isinstance(settings.classes, tuple) else None
    if spec.space is None:
        meaning = VALUES.get(settings.classes) if isinstance(settings.classes, str) else own
        ids = data.id_map or meaning or {i: i for i in range(space.num_classes)}
        return LabelCode(lookup_table(ids, space.num_classes), _colors(settings, space))
    if data.id_map is not None:
        return LabelCode(lookup_table(data.id_map, space.num_classes))
    if own is not None and not _says_of(settings):
        return LabelCode(lookup_table(own))
    return _folded(spec, SPACES[spec.space], _fold(spec.space, data, settings))


def _says_of(settings: Settings) -> bool:
    return isinstance(settings.classes, tuple) and any(entry.of is not None for entry in settings.classes)


def _colors(settings: Settings, space: LabelSpace) -> dict[Color, int] | None:
    """Class ids of a plain folder's colours: those of a known label space, or all given by the user, none twice."""
    own: Sequence[ClassConfig] = settings.classes if isinstance(settings.classes, tuple) else ()
    if any(entry.color is None for entry in own) or len(set(space.colors)) < space.num_classes:
        return None
    return {color: i for i, color in enumerate(space.colors)}


def _folded(spec: Spec, known: LabelSpace, fold: dict[int, int]) -> LabelCode:
    """The files of a published data set, whose ids become the run's."""
    table = lookup_table(fold)
    values = lookup_table(spec.ids or {i: i for i in range(known.num_classes)})
    colors = {color: int(table[i]) for i, color in enumerate(known.colors)}
    return LabelCode(map_ids(values, table), colors if spec.colored else None)


def _fold(known: str, data: DataConfig, settings: Settings) -> dict[int, int]:
    """Ids of the data set's label space to class ids of the run."""
    if isinstance(settings.classes, tuple):
        return fold_by_name(known, settings.classes)
    wanted = settings.classes or spec_of(settings.source).space or known
    if wanted == known:
        return {i: i for i in range(SPACES[known].num_classes)}
    if (known, wanted) not in FOLDS:
        raise UserError(
            f"{data.root} has the classes of {known}, the run those of {wanted}, and no mapping between them is known. "
            "List the run's classes and say what each is made `of`, or give an `id_map` (raw value: class id)."
        )
    return FOLDS[known, wanted]
