"""What a method is given before its first step so that it costs less: recomputed blocks, compiled networks, ..."""

from __future__ import annotations

import shutil
import sysconfig
from typing import Any

import torch
from torch import nn

from ssrseg.adapt.methods import Method
from ssrseg.config import TrainConfig
from ssrseg.cpu.training_layers import ease
from ssrseg.errors import UserError
from ssrseg.models.recompute import recompute_blocks


def prepare(method: Method, config: TrainConfig, device: torch.device) -> list[str]:
    """Activation checkpointing and compilation, as the settings say; cheaper convolutions on a CPU.

    The method is changed in place. Names in state dicts stay what they are.

    Returns:
        What the user should know.

    Raises:
        UserError: `train.compile: on` without a C++ compiler.
    """
    notes: list[str] = []
    if config.activation_checkpointing and not recompute_blocks(method.learner.student.backbone):
        notes.append("train.activation_checkpointing: this backbone repeats no blocks, so nothing is recomputed")
    if config.compile == "on" or (config.compile == "auto" and device.type == "cuda"):
        notes += _compile(method, config)
    elif device.type == "cpu" and config.precision == "fp32":
        for network in filter(None, (method.learner, method.teacher.segmenter)):
            ease(network)
    return notes


def _compile(method: Method, config: TrainConfig) -> list[str]:
    if not has_compiler():
        if config.compile == "on":
            raise UserError("train.compile: on needs a C++ compiler (g++ or clang++): install one, or set it to off.")
        return ["train.compile: auto found no C++ compiler (g++ or clang++): nothing is compiled"]
    student, teacher = method.learner.student, method.teacher.segmenter
    compile_training(student.head)
    if not config.activation_checkpointing:
        compile_training(student.backbone)
    if teacher is not None:
        compile_training(teacher.backbone)
        compile_training(teacher.head)
    for encoder in method.frozen:
        encoder.features = torch.compile(encoder.features, dynamic=False)
    if config.activation_checkpointing:
        return ["train.compile: the student's backbone is recomputed in the backward pass, and not compiled"]
    return []


def compile_training(module: nn.Module) -> None:
    """Compile what `module` does in training mode, at the shapes that it meets; in eval mode it runs as it is.

    Evaluation meets whole images of many sizes: compiling for each would take longer than evaluating.
    """
    eager = module.forward
    compiled = torch.compile(eager, dynamic=False)

    def forward(*args: Any) -> Any:
        return compiled(*args) if module.training else eager(*args)

    module.forward = forward  # not module.compile(): that has no way back for eval mode


def has_compiler() -> bool:
    """Is there a C++ compiler, which `torch.compile` needs on every device?"""
    named = (sysconfig.get_config_var("CXX") or "").split()[:1]
    return any(shutil.which(name) for name in (*named, "g++", "clang++", "cl"))
