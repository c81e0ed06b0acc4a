"""All that is deployed: backbones, heads, the segmenter, and published weights."""

from ssrseg.models.backbones import BACKBONES, Backbone, build_backbone
from ssrseg.models.convert import convert
from ssrseg.models.description import Description, Detail
from ssrseg.models.heads import HEADS, build_head
from ssrseg.models.published import LoadReport, load_published
from ssrseg.models.segmenter import Segmenter, build_segmenter, load_segmenter, save_segmenter
from ssrseg.models.weights import load, load_pretrained

__all__ = [
    "BACKBONES",
    "HEADS",
    "Backbone",
    "Description",
    "Detail",
    "LoadReport",
    "Segmenter",
    "build_backbone",
    "build_head",
    "build_segmenter",
    "convert",
    "load",
    "load_pretrained",
    "load_published",
    "load_segmenter",
    "save_segmenter",
]
