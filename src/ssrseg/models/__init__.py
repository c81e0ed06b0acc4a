"""All that is deployed: backbones, heads, the segmenter, and published weights."""

from ssrseg.models.backbones import BACKBONES as BACKBONES, Backbone as Backbone, build_backbone as build_backbone
from ssrseg.models.convert import convert as convert
from ssrseg.models.description import Description as Description, Detail as Detail
from ssrseg.models.heads import HEADS as HEADS, build_head as build_head
from ssrseg.models.published import LoadReport as LoadReport, load_published as load_published
from ssrseg.models.segmenter import (
    Segmenter as Segmenter,
    build_segmenter as build_segmenter,
    load_segmenter as load_segmenter,
    save_segmenter as save_segmenter,
)
from ssrseg.models.weights import load as load, load_pretrained as load_pretrained
