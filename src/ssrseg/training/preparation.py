"""What a method is given before its first step so that it costs less: recomputed blocks, compiled networks, ..."""

from __future__ import annotations

import shutil
import sysconfig

import torch

from ssrseg.adapt.methods import Method
from ssrseg.config import TrainConfig
from ssrseg.errors import UserError


def prepare(method: Method, config: TrainConfig, device: torch.device) -> list[str]:
    """Activation checkpointing and compilation, as the settings say; on a CPU, the layers of `ssrseg.cpu`.

    The method is changed in place. Names in state dicts stay what they are.

    Returns:
        What the user should know.

    Raises:
        UserError: `train.compile: on` without a C++ compiler.
    """
    notes: list[str] = []
    if config.activation_checkpointing and not method.learner.student.backbone.checkpoint_activations():
        notes.append("train.activation_checkpointing: this backbone cannot, so nothing is recomputed")
    compiled = config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
    if device.type == "cpu":
        from ssrseg.cpu import optimize  # a CUDA run does without it

        for network in filter(None, (method.learner, method.teacher.segmenter)):
            optimize(network, training=True, layers=config.precision == "fp32" and not compiled)
        for encoder in method.frozen:
            optimize(encoder.module)
    return [*notes, *_compile(method, config)] if compiled else notes


def _compile(method: Method, config: TrainConfig) -> list[str]:
    if not has_compiler():
        if config.compile == "on":
            raise UserError("train.compile: on needs a C++ compiler (g++ or clang++): install one, or set it to off.")
        return ["train.compile: auto found no C++ compiler (g++ or clang++): nothing is compiled"]
    student, teacher = method.learner.student, method.teacher.segmenter
    student.compile_training("head", *(() if config.activation_checkpointing else ("backbone",)))
    if teacher is not None:
        teacher.compile_training("backbone", "head")
    for encoder in method.frozen:
        encoder.features = torch.compile(encoder.features, dynamic=False)
    if config.activation_checkpointing:
        return ["train.compile: the student's backbone is recomputed in the backward pass, and not compiled"]
    return []


def has_compiler() -> bool:
    """Look for a C++ compiler, which `torch.compile` needs on every device."""
    named = (sysconfig.get_config_var("CXX") or "").split()[:1]
    return any(shutil.which(name) for name in (*named, "g++", "clang++", "cl"))
