"""Typed settings, in YAML or on the command line as `key.path=value`; an unknown key names the nearest valid one.

The groups of the method are in `ssrseg.config.method`.
"""

from ssrseg.config.base import Strict as Strict
from ssrseg.config.data import (
    ClassBalancedConfig as ClassBalancedConfig,
    ClassConfig as ClassConfig,
    Data as Data,
    DataConfig as DataConfig,
    LoaderConfig as LoaderConfig,
    RareClassConfig as RareClassConfig,
    datasets as datasets,
    domains as domains,
)
from ssrseg.config.settings import (
    Settings as Settings,
    affects_result as affects_result,
    dump as dump,
    flatten as flatten,
    resolve as resolve,
    resolve_group as resolve_group,
)
from ssrseg.config.training import (
    CRITERIA as CRITERIA,
    InferenceConfig as InferenceConfig,
    ModelConfig as ModelConfig,
    OptimConfig as OptimConfig,
    SelectionConfig as SelectionConfig,
    SGDConfig as SGDConfig,
    TrainConfig as TrainConfig,
)
from ssrseg.config.trees import (
    assignments as assignments,
    compose as compose,
    merge as merge,
    preset_names as preset_names,
    presets as presets,
    read_preset as read_preset,
    read_yaml as read_yaml,
    with_words as with_words,
)
