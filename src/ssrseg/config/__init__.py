"""Typed settings, in YAML or on the command line as `key.path=value`; an unknown key names the nearest valid one."""

from ssrseg.config.base import (
    Strict,
)
from ssrseg.config.data import (
    ClassBalancedConfig,
    ClassConfig,
    DataConfig,
    LoaderConfig,
    RareClassConfig,
)
from ssrseg.config.method import (
    AlignmentConfig,
    AugmentConfig,
    FeatureDistanceConfig,
    FoundationConfig,
    MaskedConfig,
    MethodConfig,
    MixedConfig,
    RegularizerConfig,
    SegmentationConfig,
    TeacherConfig,
)
from ssrseg.config.presets import assignments, compose, merge, preset_names, preset_summaries, read_preset, read_yaml
from ssrseg.config.resolve import affects_result, dump, flatten, resolve, resolve_group
from ssrseg.config.settings import (
    Settings,
    StageConfig,
)
from ssrseg.config.training import (
    CRITERIA,
    GuardConfig,
    InferenceConfig,
    ModelConfig,
    OptimConfig,
    SelectionConfig,
    TrainConfig,
)

__all__ = [
    "CRITERIA",
    "AlignmentConfig",
    "AugmentConfig",
    "ClassBalancedConfig",
    "ClassConfig",
    "DataConfig",
    "FeatureDistanceConfig",
    "FoundationConfig",
    "GuardConfig",
    "InferenceConfig",
    "LoaderConfig",
    "MaskedConfig",
    "MethodConfig",
    "MixedConfig",
    "ModelConfig",
    "OptimConfig",
    "RareClassConfig",
    "RegularizerConfig",
    "SegmentationConfig",
    "SelectionConfig",
    "Settings",
    "StageConfig",
    "Strict",
    "TeacherConfig",
    "TrainConfig",
    "affects_result",
    "assignments",
    "compose",
    "dump",
    "flatten",
    "merge",
    "preset_names",
    "preset_summaries",
    "read_preset",
    "read_yaml",
    "resolve",
    "resolve_group",
]
