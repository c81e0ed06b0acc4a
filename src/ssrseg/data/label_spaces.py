"""Label spaces of published data sets, and the mappings between them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ssrseg.errors import UserError

IGNORE = 255
Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSpace:
    """Classes in the order of their ids; `ignore` marks pixels of none."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore: int = IGNORE

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.names)

    def index(self, name: str) -> int:
        """Id of a class; raises `UserError` that names the nearest one."""
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The classes are {', '.join(self.names)}."
            raise UserError(f"There is no class {name!r}. {hint}")
        return self.names.index(name)

    def subset(self, names: Sequence[str]) -> LabelSpace:
        """Some of the classes, in the order given."""
        ids = [self.index(name) for name in names]
        return LabelSpace(tuple(names), tuple(self.colors[i] for i in ids))


def _space(colors: Mapping[str, Color]) -> LabelSpace:
    return LabelSpace(tuple(colors), tuple(colors.values()))


CITYSCAPES19 = _space(
    {
        "road": (128, 64, 128),
        "sidewalk": (244, 35, 232),
        "building": (70, 70, 70),
        "wall": (102, 102, 156),
        "fence": (190, 153, 153),
        "pole": (153, 153, 153),
        "traffic light": (250, 170, 30),
        "traffic sign": (220, 220, 0),
        "vegetation": (107, 142, 35),
        "terrain": (152, 251, 152),
        "sky": (70, 130, 180),
        "person": (220, 20, 60),
        "rider": (255, 0, 0),
        "car": (0, 0, 142),
        "truck": (0, 0, 70),
        "bus": (0, 60, 100),
        "train": (0, 80, 100),
        "motorcycle": (0, 0, 230),
        "bicycle": (119, 11, 32),
    }
)
"""Cityscapes' train ids."""

NOT_IN_SYNTHIA = ("terrain", "truck", "train")
SMALL_IN_SYNTHIA13 = ("wall", "fence", "pole")

SYNTHIA16 = CITYSCAPES19.subset([name for name in CITYSCAPES19.names if name not in NOT_IN_SYNTHIA])
SYNTHIA13 = SYNTHIA16.subset([name for name in SYNTHIA16.names if name not in SMALL_IN_SYNTHIA13])

CAMVID11 = LabelSpace(
    (
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    tuple(CITYSCAPES19.colors[i] for i in (10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12)),
)
"""SegNet's classes of CamVid."""

CAMVID31 = _space(
    {
        "Animal": (64, 128, 64),
        "Archway": (192, 0, 128),
        "Bicyclist": (0, 128, 192),
        "Bridge": (0, 128, 64),
        "Building": (128, 0, 0),
        "Car": (64, 0, 128),
        "CartLuggagePram": (64, 0, 192),
        "Child": (192, 128, 64),
        "Column_Pole": (192, 192, 128),
        "Fence": (64, 64, 128),
        "LaneMkgsDriv": (128, 0, 192),
        "LaneMkgsNonDriv": (192, 0, 64),
        "Misc_Text": (128, 128, 64),
        "MotorcycleScooter": (192, 0, 192),
        "OtherMoving": (128, 64, 64),
        "ParkingBlock": (64, 192, 128),
        "Pedestrian": (64, 64, 0),
        "Road": (128, 64, 128),
        "RoadShoulder": (128, 128, 192),
        "Sidewalk": (0, 0, 192),
        "SignSymbol": (192, 128, 128),
        "Sky": (128, 128, 128),
        "SUVPickupTruck": (64, 128, 192),
        "TrafficCone": (0, 0, 64),
        "TrafficLight": (0, 64, 64),
        "Train": (192, 64, 128),
        "Tree": (128, 128, 0),
        "Truck_Bus": (192, 128, 192),
        "Tunnel": (64, 0, 64),
        "VegetationMisc": (192, 192, 0),
        "Wall": (64, 192, 0),
    }
)
"""CamVid's own classes and colours, without Void (black)."""

IDD26 = _space(
    {
        "road": (128, 64, 128),
        "drivable fallback": (81, 0, 81),
        "sidewalk": (244, 35, 232),
        "non-drivable fallback": (152, 251, 152),
        "person": (220, 20, 60),
        "rider": (255, 0, 0),
        "motorcycle": (0, 0, 230),
        "bicycle": (119, 11, 32),
        "autorickshaw": (255, 204, 54),
        "car": (0, 0, 142),
        "truck": (0, 0, 70),
        "bus": (0, 60, 100),
        "vehicle fallback": (136, 143, 153),
        "curb": (220, 190, 40),
        "wall": (102, 102, 156),
        "fence": (190, 153, 153),
        "guard rail": (180, 165, 180),
        "billboard": (174, 64, 67),
        "traffic sign": (220, 220, 0),
        "traffic light": (250, 170, 30),
        "pole": (153, 153, 153),
        "obs-str-bar-fallback": (169, 187, 214),
        "building": (70, 70, 70),
        "bridge": (150, 100, 100),
        "vegetation": (107, 142, 35),
        "sky": (70, 130, 180),
    }
)
"""The India Driving Dataset, level 3 of its hierarchy; colours of each level's first label that has one alone."""

VISTAS65 = _space(
    {
        "Bird": (165, 42, 42),
        "Ground Animal": (0, 192, 0),
        "Curb": (196, 196, 196),
        "Fence": (190, 153, 153),
        "Guard Rail": (180, 165, 180),
        "Barrier": (90, 120, 150),
        "Wall": (102, 102, 156),
        "Bike Lane": (128, 64, 255),
        "Crosswalk - Plain": (140, 140, 200),
        "Curb Cut": (170, 170, 170),
        "Parking": (250, 170, 160),
        "Pedestrian Area": (96, 96, 96),
        "Rail Track": (230, 150, 140),
        "Road": (128, 64, 128),
        "Service Lane": (110, 110, 110),
        "Sidewalk": (244, 35, 232),
        "Bridge": (150, 100, 100),
        "Building": (70, 70, 70),
        "Tunnel": (150, 120, 90),
        "Person": (220, 20, 60),
        "Bicyclist": (255, 0, 0),
        "Motorcyclist": (255, 0, 100),
        "Other Rider": (255, 0, 200),
        "Lane Marking - Crosswalk": (200, 128, 128),
        "Lane Marking - General": (255, 255, 255),
        "Mountain": (64, 170, 64),
        "Sand": (230, 160, 50),
        "Sky": (70, 130, 180),
        "Snow": (190, 255, 255),
        "Terrain": (152, 251, 152),
        "Vegetation": (107, 142, 35),
        "Water": (0, 170, 30),
        "Banner": (255, 255, 128),
        "Bench": (250, 0, 30),
        "Bike Rack": (100, 140, 180),
        "Billboard": (220, 220, 220),
        "Catch Basin": (220, 128, 128),
        "CCTV Camera": (222, 40, 40),
        "Fire Hydrant": (100, 170, 30),
        "Junction Box": (40, 40, 40),
        "Mailbox": (33, 33, 33),
        "Manhole": (100, 128, 160),
        "Phone Booth": (142, 0, 0),
        "Pothole": (70, 100, 150),
        "Street Light": (210, 170, 100),
        "Pole": (153, 153, 153),
        "Traffic Sign Frame": (128, 128, 128),
        "Utility Pole": (0, 0, 80),
        "Traffic Light": (250, 170, 30),
        "Traffic Sign (Back)": (192, 192, 192),
        "Traffic Sign (Front)": (220, 220, 0),
        "Trash Can": (140, 140, 20),
        "Bicycle": (119, 11, 32),
        "Boat": (150, 0, 255),
        "Bus": (0, 60, 100),
        "Car": (0, 0, 142),
        "Caravan": (0, 0, 90),
        "Motorcycle": (0, 0, 230),
        "On Rails": (0, 80, 100),
        "Other Vehicle": (128, 64, 64),
        "Trailer": (0, 0, 110),
        "Truck": (0, 0, 70),
        "Wheeled Slow": (0, 0, 192),
        "Car Mount": (32, 32, 32),
        "Ego Vehicle": (120, 10, 10),
    }
)
"""Mapillary Vistas 1.2, in the order of its config; its 66th label is Unlabeled."""

BINARY = LabelSpace(("background", "foreground"), ((0, 0, 0), (255, 255, 255)))
"""Masks: 0 against 1 or 255."""

SPACES: dict[str, LabelSpace] = {
    "cityscapes19": CITYSCAPES19,
    "synthia16": SYNTHIA16,
    "synthia13": SYNTHIA13,
    "camvid11": CAMVID11,
    "camvid31": CAMVID31,
    "idd26": IDD26,
    "vistas65": VISTAS65,
    "binary": BINARY,
}
"""Label spaces by the name that `classes` takes."""

VALUES: dict[str, dict[int, int]] = {"binary": {0: 0, 1: 1, 255: 1}}
"""Label space -> what the values of a plain folder mean in it; the class ids when absent."""
