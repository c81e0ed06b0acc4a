"""Typed settings, in YAML or on the command line as `key.path=value`; an unknown key names the nearest valid one."""

from ssrseg.config.base import Strict
from ssrseg.config.data import ClassBalancedConfig, ClassConfig, DataConfig, LoaderConfig, RareClassConfig
from ssrseg.config.method import (
    AugmentConfig,
    FeatureDistanceConfig,
    FoundationConfig,
    MaskedConfig,
    MethodConfig,
    MixedConfig,
    RegularizerConfig,
    TeacherConfig,
)
from ssrseg.config.presets import assignments, compose, merge, preset_names, preset_summaries, read_preset, read_yaml
from ssrseg.config.resolve import affects_result, dump, flatten, resolve, resolve_group
from ssrseg.config.settings import Settings
from ssrseg.config.training import (
    CRITERIA,
    InferenceConfig,
    OptimConfig,
    SelectionConfig,
    SGDConfig,
    TrainConfig,
)

__all__ = [
    "CRITERIA",
    "AugmentConfig",
    "ClassBalancedConfig",
    "ClassConfig",
    "DataConfig",
    "FeatureDistanceConfig",
    "FoundationConfig",
    "InferenceConfig",
    "LoaderConfig",
    "MaskedConfig",
    "MethodConfig",
    "MixedConfig",
    "OptimConfig",
    "RareClassConfig",
    "RegularizerConfig",
    "SGDConfig",
    "SelectionConfig",
    "Settings",
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
