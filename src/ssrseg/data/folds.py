"""Mappings between label spaces: those that are known, and a user's own, by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from ssrseg.config import ClassConfig
from ssrseg.data.label_spaces import (
    CAMVID11,
    CAMVID31,
    CITYSCAPES19,
    IDD26,
    SPACES,
    SYNTHIA13,
    SYNTHIA16,
    VISTAS65,
    LabelSpace,
)
from ssrseg.errors import UserError

REST = "*"
"""In `of`: all classes of the data set that no other class takes."""


def _fold(old: LabelSpace, new: LabelSpace, parts: Mapping[str, Sequence[str]]) -> dict[int, int]:
    """Id map from the names of the new classes' parts."""
    return {old.index(part): new.index(name) for name, names in parts.items() for part in names}


def _same(old: LabelSpace, new: LabelSpace) -> dict[int, int]:
    return _fold(old, new, {name: [name] for name in new.names if name in old.names})


_CAMVID_OF_CITYSCAPES = {
    "Sky": ["sky"],
    "Building": ["building"],
    "Pole": ["pole"],
    "Road": ["road"],
    "Pavement": ["sidewalk"],
    "Tree": ["vegetation", "terrain"],
    "SignSymbol": ["traffic sign", "traffic light"],
    "Fence": ["fence"],
    "Car": ["car", "truck", "bus", "train"],
    "Pedestrian": ["person"],
    "Bicyclist": ["rider", "motorcycle", "bicycle"],
}
_CAMVID_OF_ITS_OWN = {  # SegNet's grouping
    "Sky": ["Sky"],
    "Building": ["Building", "Bridge", "Wall", "Tunnel", "Archway"],
    "Pole": ["Column_Pole", "TrafficCone"],
    "Road": ["Road", "LaneMkgsDriv", "LaneMkgsNonDriv"],
    "Pavement": ["Sidewalk", "ParkingBlock", "RoadShoulder"],
    "Tree": ["Tree", "VegetationMisc"],
    "SignSymbol": ["SignSymbol", "Misc_Text", "TrafficLight"],
    "Fence": ["Fence"],
    "Car": ["Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"],
    "Pedestrian": ["Pedestrian", "Child", "CartLuggagePram", "Animal"],
    "Bicyclist": ["Bicyclist", "MotorcycleScooter"],
}
_CITYSCAPES_OF_CAMVID = {new: [old] for old, (new, *_) in _CAMVID_OF_CITYSCAPES.items()}
_CITYSCAPES_OF_VISTAS = {  # as RobustNet (Choi et al., CVPR 2021) and those who compare with it score Vistas
    "road": ["Road", "Lane Marking - General", "Manhole"],
    "sidewalk": ["Sidewalk", "Curb"],
    "building": ["Building"],
    "wall": ["Wall"],
    "fence": ["Fence"],
    "pole": ["Pole", "Utility Pole"],
    "traffic light": ["Traffic Light"],
    "traffic sign": ["Traffic Sign (Front)"],
    "vegetation": ["Vegetation"],
    "terrain": ["Terrain"],
    "sky": ["Sky"],
    "person": ["Person"],
    "rider": ["Bicyclist", "Motorcyclist", "Other Rider"],
    "car": ["Car"],
    "truck": ["Truck"],
    "bus": ["Bus"],
    "train": ["On Rails"],
    "motorcycle": ["Motorcycle"],
    "bicycle": ["Bicycle"],
}
_TERRAIN_OF_IDD = {"terrain": ["non-drivable fallback"]}  # the csTrainId of the data set's own table

FOLDS: dict[tuple[str, str], dict[int, int]] = {
    ("cityscapes19", "synthia16"): _same(CITYSCAPES19, SYNTHIA16),
    ("cityscapes19", "synthia13"): _same(CITYSCAPES19, SYNTHIA13),
    ("synthia16", "cityscapes19"): _same(SYNTHIA16, CITYSCAPES19),
    ("synthia13", "cityscapes19"): _same(SYNTHIA13, CITYSCAPES19),
    ("cityscapes19", "camvid11"): _fold(CITYSCAPES19, CAMVID11, _CAMVID_OF_CITYSCAPES),
    ("camvid11", "cityscapes19"): _fold(CAMVID11, CITYSCAPES19, _CITYSCAPES_OF_CAMVID),
    ("camvid31", "camvid11"): _fold(CAMVID31, CAMVID11, _CAMVID_OF_ITS_OWN),
    ("idd26", "cityscapes19"): _same(IDD26, CITYSCAPES19) | _fold(IDD26, CITYSCAPES19, _TERRAIN_OF_IDD),
    ("vistas65", "cityscapes19"): _fold(VISTAS65, CITYSCAPES19, _CITYSCAPES_OF_VISTAS),
}
"""(from, to) -> id map between label spaces; ids that are not listed become ignore."""


def fold_by_name(space: str, classes: Sequence[ClassConfig]) -> dict[int, int]:
    """Ids of a data set's label space to a user's own classes, by what each is made `of`, else by its name.

    Upper and lower case are the same. A class may name classes of several data sets; those that this one has count.

    Raises:
        UserError: a name that no label space knows, a class that is taken twice, or nothing in common.
    """
    old = {name.casefold(): i for i, name in enumerate(SPACES[space].names)}
    fold: dict[int, int] = {}
    for i, entry in enumerate(classes):
        for name in _parts(entry):
            if name.casefold() not in old:
                _check_known(name, space, entry)
            elif fold.setdefault(old[name.casefold()], i) != i:
                other = classes[fold[old[name.casefold()]]].name
                raise UserError(f"The class {name!r} of {space} is taken by {other!r} and by {entry.name!r}.")
    for i, entry in enumerate(classes):
        if REST in (entry.of or ()):
            fold = dict.fromkeys(old.values(), i) | fold
    if not fold:
        raise UserError(
            f"The data have the classes of {space} ({', '.join(SPACES[space].names)}), of which "
            f"{', '.join(entry.name for entry in classes)} take none: say what each is made `of`, or give an `id_map`."
        )
    return fold


def _parts(entry: ClassConfig) -> Sequence[str]:
    return (entry.name,) if entry.of is None else [name for name in entry.of if name != REST]


def _check_known(name: str, space: str, entry: ClassConfig) -> None:
    """A class of another data set is fine where it is asked for; a typing error is not."""
    elsewhere = {known.casefold() for other in SPACES.values() for known in other.names}
    if entry.of is not None and name.casefold() in elsewhere:
        return
    near = difflib.get_close_matches(name.casefold(), [known.casefold() for known in SPACES[space].names], n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Its classes are {', '.join(SPACES[space].names)}."
    raise UserError(
        f"The data have the classes of {space}, and {name!r} is none of them. {hint} "
        f"Say which of them the class {entry.name!r} is made of: `of: [...]` in `classes` "
        "(`of: []` for none, `of: ['*']` for all the rest), or give the data set an `id_map` (raw value: class id)."
    )
