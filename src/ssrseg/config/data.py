"""Settings of the data: classes, folders, and how samples are drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag, model_validator

from ssrseg.config.base import NO_EFFECT, Fraction, Positive, Rate, Size, Strict, UserPath, chosen_by
from ssrseg.errors import UserError

Byte = Annotated[int, Field(ge=0, le=255)]


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, int) else value


def _as_color(value: Any) -> Any:
    spelled = isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value)
    return tuple(bytes.fromhex(value[1:])) if spelled else value


class ClassConfig(Strict):
    """One class of a user's own label space."""

    name: str
    color: Annotated[tuple[Byte, Byte, Byte], BeforeValidator(_as_color)] | None = None
    """RGB, 0..255, or as `'#ff8000'`; one is chosen when absent. Label files that are coloured need that of every
    class."""
    ids: Annotated[tuple[int, ...], BeforeValidator(_as_tuple)] | None = None
    """Raw label values that mean this class; its position in the list when absent."""
    of: tuple[str, ...] | None = None
    """Names of the classes of a published data set that this class is made of; its own name when absent.

    Where source and val have different classes, name those of both; `*` means all that no other class takes.
    """


def _as_class(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | date):  # what YAML makes of null, yes, 1, 2024-01-01
        raise ValueError(f'{value!r} is no name: put such words in quotes, as in \'classes=["yes", "no"]\'')
    return {"name": value} if isinstance(value, str) else value


def _by_value(value: Any) -> Any:
    """Take `{raw value: name}`, as other tools write it, for classes in the order of their values."""
    if not (isinstance(value, Mapping) and value and all(isinstance(raw, int) for raw in value)):
        return value
    ids: dict[Any, list[int]] = {}
    for raw, name in sorted(value.items()):
        ids.setdefault(name, []).append(raw)
    return [{"name": name, "ids": raws} for name, raws in ids.items()]


Class = Annotated[ClassConfig, BeforeValidator(_as_class)]
"""One class; in YAML, a bare name will do."""
Classes = Annotated[
    Annotated[str, Tag("<space>")] | Annotated[tuple[Class, ...], BeforeValidator(_by_value), Tag("<list>")],
    chosen_by(str, "<space>", "<list>"),
]
"""A label space in `ssrseg.data.SPACES`, or the classes themselves."""


class ExactSize(Strict):
    """A size that images are resized to whatever their aspect ratio, as Undoing's code does."""

    exact: Size
    """(width, height)."""


Bound = Annotated[
    Annotated[Size, Tag("<bound>")] | Annotated[ExactSize, Tag("<exact>")],
    chosen_by((dict, ExactSize), "<exact>", "<bound>"),
]
"""(width, height) that bounds an image, or that it is stretched to."""


Channel = Literal["red", "green", "blue", "alpha"]
MOST_MASKS = 1024
"""Ids of an image's masks are below this."""


class ImageMargins(Strict):
    """Borders of whole images whose pseudo-labels are not trusted; they travel with the image through every crop."""

    sides: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=4, max_length=4)]
    """Rows at the top and bottom, columns at the left and right."""
    of: Size
    """(width, height) of the image in which they are counted; [100, 100] makes them percent."""

    @model_validator(mode="after")
    def _something_is_left(self) -> ImageMargins:
        top, bottom, left, right = self.sides
        if top + bottom >= self.of[1] or left + right >= self.of[0]:
            raise ValueError(f"sides {list(self.sides)} leave nothing of an image of {self.of[0]}x{self.of[1]}")
        return self


Margins = Annotated[
    Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], Tag("<rows>")]
    | Annotated[ImageMargins, Tag("<image>")],
    chosen_by((dict, ImageMargins), "<image>", "<rows>"),
]
"""Rows at the top and bottom of every crop, or borders of whole images."""


class LabelledPart(Strict):
    """The images of a target that have labels: those that `labels` of the target finds."""

    stems: UserPath | None = None
    """Text file with one image stem per line: only these."""
    count: Positive | None = None
    """So many of them, evenly spread; all when absent."""


class DataConfig(Strict):
    """Images, with labels or without."""

    name: str | None = None
    """What numbers of it are called among several of its role; the end of `root` that tells it when absent."""
    share: Rate | None = None
    """Of several: how often it is drawn, in proportion to the shares of the others; by its number of images when none
    of them has a share."""
    root: UserPath
    """A folder, unpacked or with the zip archives as they were downloaded, or one zip archive (`pack` writes such):
    on the disk, or at a URL as `s3://bucket/gta5` or `https://host/gta5.zip`."""
    spec: str = "folders"
    """A layout in `ssrseg.data.SPECS`; `folders` is any pair of globs."""
    split: str | None = None
    """Fills `{split}` in the globs; the spec's own default when absent."""
    images: str | None = None
    """Glob below `root`; replaces the spec's."""
    labels: str | None = None
    """Glob below `root`. An image's label is the file for which the wildcards match the same text. `{class}` stands for
    the class of a mask, where each has a file of its own."""
    stems: UserPath | None = None
    """Text file with one image stem per line: only these are used."""
    id_map: dict[int, int] | None = None
    """Raw label value -> class id; values that are not listed become ignore."""
    channel: Channel | None = None
    """Of coloured label files, the one that holds the values, as CARLA's red."""
    labels_root: UserPath | None = None
    """Where `labels` lie when it is not below `root`."""
    frame_interval: Rate = 1.0
    """Seconds between the frames that are used of videos (`spec: video`)."""
    resize: Bound | None = None
    """(width, height) that bounds the image, aspect ratio kept; `{exact: [width, height]}` stretches it to that size;
    no resize when absent."""
    masks: str | None = None
    """Glob below the `root` of a target: a map of regions for each image, matched as labels are, of 8 or 16 bits: an id
    for each pixel, 0 where there is none (`method.teacher.regions.of: masks`)."""
    margins: Margins = (0, 0)
    """Where pseudo-labels are not trusted (own car, rectification): rows at the top and bottom of a target crop, or
    `{sides: [top, bottom, left, right], of: [width, height]}` of whole images (HRDA: 30, 240, 30, 30 of 2048x1024)."""

    labelled: LabelledPart | None = None
    """Of a target, the images whose labels are learnt from too, in a view of their own (`method.labelled`)."""


Data = Annotated[
    Annotated[DataConfig, Tag("<one>")] | Annotated[tuple[DataConfig, ...], Field(min_length=1), Tag("<several>")],
    chosen_by((list, tuple), "<several>", "<one>"),
]
"""One data set, or several of one role."""
COMMON = {"train", "val", "test", "images", "labels", "data", "source", "target"}
"""Names of folders that say too little without the one above."""


def datasets(data: Data | None) -> tuple[DataConfig, ...]:
    """List the data sets of a role: none, one or several."""
    return () if data is None else data if isinstance(data, tuple) else (data,)


def domains(role: str, data: Data | None) -> dict[str, DataConfig]:
    """Name the data sets of a role as every number of theirs does: by the role, and of several by their own names.

    Raises `UserError` for two of one name.
    """
    if not isinstance(data, tuple):
        return {} if data is None else {role: data}
    names = [one.name or telling_end(one.root) for one in data]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"Two data sets of {role} are called {twice[0]!r}: give each a `name` of its own.")
    return {f"{role} {name}": one for name, one in zip(names, data, strict=True)}


def numbered(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Write the lists of data sets in a tree of settings as groups, by number: `source.0.root`."""
    lists = {role: tree[role] for role in ("source", "target", "val") if isinstance(tree.get(role), list)}
    return {**tree, **{role: {str(n): one for n, one in enumerate(each)} for role, each in lists.items()}}


def labelled_in(target: Data | None) -> dict[str, DataConfig]:
    """Name the targets of which some images have labels as numbers of those are called; they are drawn by count."""
    return {
        name.replace("target", "labelled", 1): one.model_copy(update={"share": None})
        for name, one in domains("target", target).items()
        if one.labelled is not None
    }


def names_labels(target: Any) -> bool:
    """Whether a target, resolved or still a tree, names images that have labels."""
    sets = target if isinstance(target, list | tuple) else [target]
    parts = (one.get("labelled") if isinstance(one, dict) else getattr(one, "labelled", None) for one in sets)
    return any(part is not None for part in parts)


def telling_end(path: Path) -> str:
    """Return the end of a path that tells a data set wherever it lies: the last name, or two where that is common."""
    parts = path.parts
    return "/".join(parts[-2:] if parts and parts[-1] in COMMON else parts[-1:])


class RareClassConfig(Strict):
    """Rare-class sampling (DAFormer, section 3.2)."""

    temperature: Rate = 0.01
    min_pixels: Positive | None = None
    """A file counts for a class when it has more pixels of it; scaled from 3000 per 512x512 crop when absent."""
    min_crop_ratio: Annotated[float, Field(ge=0)] = 0.5
    """Share of `min_pixels` that the crop must show, else it is drawn again (at most ten times)."""
    any_image: Fraction | None = None
    """Share of the draws that take any image, whatever it shows; the others never take images of frequent classes
    alone. When absent, 0 for published data sets, as published, and 0.25 for a folder of your own."""


class ClassBalancedConfig(Strict):
    """Class-balanced source list (Undoing's code): a class seen less often so far is drawn more often."""

    block: Positive = 3000
    """Draws after which the histogram starts anew."""
    offset: Annotated[float, Field(gt=1)] = 1.01
    """A class's weight is 1 / ln(offset + its share so far)."""


class JitterConfig(Strict):
    """Colour jitter of source images as torchvision has it, at the file's size, before `resize` (Undoing's code)."""

    strength: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factors of brightness, contrast and saturation lie in 1 +- strength."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    """Turns of the colour circle, +-."""


class LoaderConfig(Strict):
    """How samples are cut and batched."""

    crop: Size = (512, 512)
    """(height, width)."""
    target_crop: Size | None = None
    """(height, width) of target crops, for methods that do not mix; `crop` when absent."""
    batch: Positive = 2
    """Source images and target images per step and process."""
    labelled: Positive | None = None
    """Labelled target images per step and process; as many as `batch` when absent."""
    workers: Annotated[int, Field(ge=0), NO_EFFECT] = 2
    timeout: Annotated[int, Field(ge=0), NO_EFFECT] = 1800
    """Seconds without a batch from the workers after which the run stops; 0 waits for ever."""
    max_class_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """A source crop is drawn again while one class covers this share of its labelled pixels or more."""
    flip: Fraction = 0.5
    jitter: JitterConfig | None = None
    rare_class: RareClassConfig | None = None
    cache: Annotated[Path | None, NO_EFFECT] = None
    """Folder that keeps images as they are after `resize`, uncompressed, so that they are decoded once: four bytes per
    pixel of the source, three of the target (3.6 and 2.7 MB per image of 1280x704; 90 GB for all of GTA5)."""
    max_pixels: Annotated[Positive | None, NO_EFFECT] = None
    """Of an image; larger ones are refused. 179 million when absent, as Pillow has it."""
    scale_jpeg: bool = False
    """Scale a JPEG that becomes half as large or smaller while decoding it. Faster, but antialiased where `resize` is
    not: on photographs grey values differ by 3 on average, single ones by 90."""
    class_balanced: ClassBalancedConfig | None = None
    """Another way to choose source images; at most one of the two."""

    @model_validator(mode="after")
    def _parts_agree(self) -> LoaderConfig:
        if self.rare_class is not None and self.class_balanced is not None:
            raise ValueError("rare_class and class_balanced both choose the source images: set one of them to null")
        if self.jitter is not None and self.cache is not None:
            raise ValueError("jitter comes before resize, and cache keeps resized images: set one of them to null")
        return self

    @property
    def of_labelled(self) -> int:
        """Labelled target images per step and process."""
        return self.labelled or self.batch

    @property
    def of_target(self) -> Size:
        """(height, width) of target crops."""
        return self.target_crop or self.crop
