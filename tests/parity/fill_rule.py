"""Deterministic weights and inputs: a value depends on a name, a shape and the case's salt, and on nothing else.

Our own writing of the rule in the fixtures' README, for folders that hold no `fill_rule.py`.
"""

import zlib

import numpy as np


def _random(text):
    return np.random.RandomState(zlib.crc32(text.encode()) & 0xFFFFFFFF)


def fill_value(name, shape, salt, *, scale=None):
    """One entry of a state dict, float32 (int64 for a counter), from its full official name."""
    shape, leaf = tuple(shape), name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    random = _random(f"{salt}:{name}")
    if leaf == "running_mean":
        value = 0.1 * random.standard_normal(shape)
    elif leaf == "running_var":
        value = 0.5 + random.random_sample(shape)
    elif len(shape) >= 2:
        value = random.standard_normal(shape) / np.sqrt(float(np.prod(shape[1:])))
    elif leaf == "weight":
        value = 1 + 0.2 * random.standard_normal(shape)
    else:
        value = 0.1 * random.standard_normal(shape)
    return np.asarray(value * (scale or {}).get(name, 1), np.float32)


def fill_input(tag, shape, salt):
    """Standard normal, float32."""
    return _random(f"{salt}:input:{tag}").standard_normal(tuple(shape)).astype(np.float32)


def fill_uniform(tag, shape, salt):
    """Uniform in [0, 1), float32."""
    return _random(f"{salt}:uniform:{tag}").random_sample(tuple(shape)).astype(np.float32)


def fill_image(tag, shape, salt):
    """Uniform 8-bit values."""
    return _random(f"{salt}:image:{tag}").randint(0, 256, size=tuple(shape)).astype(np.uint8)


def fill_labels(tag, shape, salt, num_classes=19, block=8, ignore=0.1):
    """Label maps (B, H, W) of squares; a square is 255 with probability `ignore`."""
    batch, height, width = shape
    grid = (batch, -(-height // block), -(-width // block))
    random = _random(f"{salt}:labels:{tag}")
    classes = random.randint(0, num_classes, size=grid)
    classes = np.where(random.random_sample(grid) < ignore, 255, classes)
    whole = classes.repeat(block, axis=1).repeat(block, axis=2)
    return np.ascontiguousarray(whole[:, :height, :width]).astype(np.int64)


def summary(tag, array, k=64):
    """Five statistics of a large array, and `k` of its values, at places that depend on `tag`."""
    values = np.asarray(array, np.float64).reshape(-1)
    picked = _random(f"index:{tag}").randint(0, values.size, size=k)
    statistics = [values.mean(), values.std(), values.min(), values.max(), np.abs(values).mean()]
    return np.array(statistics), values[picked]
