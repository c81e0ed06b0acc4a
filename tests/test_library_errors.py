"""Errors of libraries that a user can do something about: one message and exit code 2, in every command."""

from __future__ import annotations

import errno
import multiprocessing
import re
import resource
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from factories import CLASSES, small_segmenter, write_pairs
from ssrseg.adapt import View
from ssrseg.adapt.terms import Segmentation
from ssrseg.cli import main
from ssrseg.config import Settings, resolve
from ssrseg.errors import OutOfMemory, UserError, out_of_memory, remedy
from ssrseg.inference.engines import pick_device
from ssrseg.models import Segmenter, save_segmenter
from ssrseg.planning import plan, what_to_change
from ssrseg.planning.fake_step import StepCost
from ssrseg.runs.folder import RunFolder
from ssrseg.training import train
from test_cli import ssrseg as command
from test_guards import PLAIN
from test_training import settings_for

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB\nSee documentation"
EXHAUSTED = [
    torch.OutOfMemoryError(CUDA),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.98 GiB, other allocations: 1 GiB, max allowed: 18 GiB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_pairs(tmp_path_factory.mktemp("user") / "game", 2).parent
    write_pairs(root / "camera", 2, width=48)
    save_segmenter(small_segmenter(), root / "model.safetensors")
    return root


NAMES = f"classes=[{', '.join(CLASSES)}]"
ROOTS = ["--source", "game", "--target", "camera", NAMES]
COMMANDS: dict[str, list[str]] = {
    "predict": ["model.safetensors", "game/images", "--out", "out"],
    "evaluate": ["model.safetensors", "game", NAMES],
    "export": ["model.safetensors", "model.onnx"],
    "recalibrate": ["model.safetensors", "new.safetensors", "--target", "game"],
    "estimate-priors": ["model.safetensors", *ROOTS],
    "plan": [*ROOTS, "model.backbone=timm:test_resnet", "loader.crop=[64, 64]", "train.accelerator=cpu"],
}
"""Each runs the network."""


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*words: Any, **over: Any) -> Any:
        raise error

    return fail


@pytest.mark.filterwarnings("ignore:The engine torch is left out")
@pytest.mark.parametrize("word", COMMANDS)
def test_memory_that_runs_out_is_a_message_in_every_command(
    word: str, deployed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Segmenter, "encode", raising(torch.OutOfMemoryError(CUDA)))
    said = command(word, *COMMANDS[word], cwd=deployed, code=2)
    assert "error: memory ran out: CUDA out of memory. Tried to allocate 2.00 GiB." in said
    assert "To need less: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize("error", EXHAUSTED, ids=lambda error: type(error).__name__)
def test_memory_is_known_by_every_librarys_words(error: Exception) -> None:
    assert out_of_memory(error)


def test_other_errors_are_not_taken_for_it() -> None:
    assert not out_of_memory(RuntimeError("Sizes of tensors must match"))
    assert remedy(RuntimeError("Sizes of tensors must match except in dimension 1")) is None
    assert remedy(KeyError("worker")) is None


LIBRARIES = {
    "CUDA error: no kernel image is available for execution on the device": "not made for this GPU",
    "The NVIDIA driver on your system is too old (found version 11040).": "nvidia-smi",
    "No CUDA GPUs are available": "train.accelerator=cpu",
    "NCCL error in: ProcessGroupNCCL.cpp:3690, internal error": "NCCL_DEBUG=INFO",
    "CUDA error: an illegal memory access was encountered": "CUDA_LAUNCH_BLOCKING=1",
    "DataLoader worker (pid 71) is killed by signal: Killed.": "loader.workers lower",
    "DataLoader worker (pid 71) is killed by signal: Bus error. It is out of shared memory.": "--shm-size",
    "received 0 items of ancdata": "ulimit -n",
    "avg_pool2d_backward_out_cuda does not have a deterministic implementation": "Leave train.deterministic out",
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it.": "train.accelerator=cpu",
    "ncclUnhandledCudaError: Call to CUDA function failed.": "NCCL_DEBUG=INFO",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED": "nvidia-smi",
    "unable to open shared memory object </torch_7> in read-write mode": "--shm-size",
    "The operator 'aten::x' is not implemented for the MPS device.": "PYTORCH_ENABLE_MPS_FALLBACK=1",
}


@pytest.mark.parametrize("words", LIBRARIES)
def test_what_a_library_says_is_shown_with_what_to_do(
    words: str, deployed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssrseg.inference.predict", raising(RuntimeError(f"{words}\nCompile with TORCH_USE_CUDA_DSA")))
    said = command("predict", *COMMANDS["predict"], cwd=deployed, code=2)
    assert f"error: {words}\n" in said
    assert LIBRARIES[words] in said


FAULTS = [
    "Sizes of tensors must match",
    "Expected all tensors to be on the same device, but found at least two devices, mps:0 and cpu!",
    "No backend type associated with device type cpu: the group is of nccl",
    "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):",
    "cudnn RNN backward can only be called in training mode",
    "CUDA error: device-side assert triggered",
    "the relationship error of two arrays that live in shared memory",
]


@pytest.mark.parametrize("words", FAULTS)
def test_a_fault_of_the_program_keeps_its_traceback(
    words: str, monkeypatch: pytest.MonkeyPatch, deployed: Path
) -> None:
    monkeypatch.setattr("ssrseg.inference.predict", raising(RuntimeError(words)))
    monkeypatch.setattr("sys.argv", ["ssrseg", "predict", "model.safetensors", "game", "--out", "out"])
    with pytest.raises(RuntimeError, match=re.escape(words)):
        main()


def test_an_error_without_words_has_its_name_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.empty", raising(RuntimeError()))
    with pytest.raises(UserError, match="cannot be used here: RuntimeError"):
        pick_device("cpu")


def exhausted_at(view: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let memory run out in the segmentation term of a view, in a step."""
    forward, seen = Segmentation.forward, list[str]()

    def exhausting(term: Segmentation, at: View, *words: Any) -> Any:
        seen.append(at.name)
        if at.name == view and seen.count(view) == step:
            raise torch.OutOfMemoryError(CUDA)
        return forward(term, at, *words)

    monkeypatch.setattr(Segmentation, "forward", exhausting)


def halved_by_checkpointing(settings: Settings, device: str, *, flops: bool = True) -> StepCost:
    """Estimates in no time; the true ones are tested elsewhere."""
    return StepCost({}, {}, {"all": 2**30 if settings.train.activation_checkpointing else 2**31})


def test_a_step_that_does_not_fit_says_where_and_what_the_plan_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_for(tmp_path)
    words = ["--source", "game", "--target", "camera", NAMES, "model={backbone: timm:test_resnet, pretrained: none}"]
    words += ["method={teacher: {}, mixed: {}}", "loader={crop: [64, 64], workers: 0}", "selection=null"]
    words += ["train={steps: 4, checkpoint_every: 1, accelerator: cpu}"]
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[what_to_change.__module__], "fake_step", halved_by_checkpointing)
        exhausted_at("mixed", 2, patch)
        said = command("train", *words, "--out", "run", cwd=tmp_path, code=2)
    assert "error: Memory ran out in step 2 (view mixed, term segmentation): CUDA out of memory. Tried" in said
    plan = "`ssrseg plan` estimates 2.00 GiB for a step; with train.activation_checkpointing=true: 1.00 GiB."
    assert plan in said
    command(*words_after("Continue with them: ssrseg ", said), cwd=tmp_path)
    assert (tmp_path / "run" / "student-last.safetensors").exists()


def words_after(start: str, said: str) -> list[str]:
    """Take the words of a command from a message."""
    return shlex.split(said.partition(start)[2].partition("\n")[0])


@pytest.mark.parametrize(("seeds", "code"), [([], 2), (["--seeds", "3"], 1)])
def test_what_goes_on_is_the_recipe_or_the_group_of_a_run_that_does_not_fit(
    seeds: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_for(tmp_path)
    words = ["--source", "game", "--target", "camera", NAMES, "model={backbone: timm:test_resnet, pretrained: none}"]
    words += ["method={distort: true}", "loader={crop: [64, 64], workers: 0}", "selection=null"]
    words += ["train={steps: 2, checkpoint_every: 1, accelerator: cpu}", "deploy.statistics=blend"]
    with monkeypatch.context() as patch:
        exhausted_at("source", 2, patch)
        said = command("train", *words, *seeds, "--out", "a run", cwd=tmp_path, code=code)
    command(*words_after("Continue with them: ssrseg ", said), cwd=tmp_path)
    (left,) = (tmp_path / "a run").rglob("recalibrated/student-last.safetensors")
    assert left.parent.parent.name == ("seed-3" if seeds else "a run")


def failing(*words: Any, **over: Any) -> Any:
    raise OutOfMemory("Memory ran out in step 2")


@pytest.mark.parametrize("begun", ["run/aligned", "run", ""])
def test_the_plan_is_of_the_run_or_stage_that_failed(
    begun: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path)
    if begun:
        RunFolder(tmp_path / begun).create(settings, {})
    monkeypatch.setattr(sys.modules[train.__module__], "train", failing)
    monkeypatch.setattr(sys.modules[what_to_change.__module__], "fake_step", halved_by_checkpointing)
    monkeypatch.chdir(tmp_path)
    words = ["--source", "game", "--target", "camera", NAMES, "--out", "run"]
    said = command("train", *words, cwd=tmp_path, code=2).rstrip("\n").split("\n")
    assert said[0] == "error: Memory ran out in step 2"
    assert [line.partition(" for ")[0] for line in said[1:]] == ["`ssrseg plan` estimates 2.00 GiB"] * bool(begun)


def test_what_the_process_itself_holds_of_the_card_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "get_device_name": "card",
        "is_available": True,
        "mem_get_info": (2**30, 2**33),
        "memory_reserved": 2**32,
    }.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda value=value: value)
    monkeypatch.setattr(sys.modules[what_to_change.__module__], "fake_step", halved_by_checkpointing)
    settings = resolve({"classes": ["a"], "source": {"root": "x"}, "train": {"accelerator": "cuda"}})
    planned = plan(settings, probe=False)
    assert planned.available == 2**30 + 2**32
    assert planned.fits


def test_what_the_plan_says_of_memory_works_or_is_said_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[what_to_change.__module__]
    monkeypatch.setattr(module, "fake_step", halved_by_checkpointing)
    monkeypatch.setattr(module, "memory_of", lambda device: None)
    words = ["plan", *ROOTS, "--no-probe", "loader.batch=1"]
    assert "not known here: say it with --memory GIB" in command(*words, cwd=tmp_path)
    said = command(*words, "--memory", "1.5", cwd=tmp_path)
    (word,) = re.findall(r"train\.\S+=\S+", said)
    assert "does not fit, with 10% left" in said
    assert ": fits" in command(*words, "--memory", "1.5", word, cwd=tmp_path)
    assert "no change that is known here makes it fit" not in said
    assert "makes it fit: choose a smaller model.backbone" in command(*words, "--memory", "0.5", cwd=tmp_path)


@pytest.mark.parametrize(("part", "place"), [("teacher", "none yet"), ("evaluation", "in the evaluation after step 2")])
def test_the_place_is_said_outside_of_the_terms_too(
    part: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, method=PLAIN, selection=None)
    if part == "teacher":
        monkeypatch.setattr("ssrseg.adapt.teacher.Teacher.forward", raising(torch.OutOfMemoryError(CUDA)))
    else:
        monkeypatch.setattr("ssrseg.training.observers.evaluation.Evaluation._evaluate", raising(MemoryError()))
    with pytest.raises(OutOfMemory, match=place):
        train(settings, tmp_path / "run")


def predict_with_little_memory(words: list[str], said: Path) -> None:
    """Predict with 256 MiB more than this process has by now."""
    torch.set_num_threads(1)  # OpenMP ends the process where it cannot start one
    resource.setrlimit(resource.RLIMIT_AS, (2**28 + in_use(), resource.RLIM_INFINITY))
    sys.stderr = said.open("w", encoding="utf-8")
    sys.argv = ["ssrseg", "predict", "model.safetensors", "large/images", "--out", "out", *words]
    main()


def in_use() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux'")
def test_memory_that_really_runs_out_is_a_message_and_its_advice_runs(
    deployed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(deployed / "large", 1, height=1408, width=1536)
    monkeypatch.chdir(deployed)
    process = multiprocessing.get_context("spawn").Process(
        target=predict_with_little_memory, args=([], deployed / "said.txt")
    )
    process.start()
    process.join()
    assert process.exitcode == 2
    said = (deployed / "said.txt").read_text()
    assert "error: memory ran out: " in said
    advised = [word.strip("',") for word in re.findall(r"'\S*? ?\S*?'", said.partition("--mode slide")[2])]
    assert len(advised) == 2
    words = ["model.safetensors", "game/images", "--out", "out", "--mode", "slide", *advised]
    assert "2 images labelled" in command("predict", *words, cwd=deployed)
