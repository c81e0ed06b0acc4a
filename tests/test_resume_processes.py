"""What ends one of two processes ends both: a signal, after which they resume as if it had not, or an early stop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from test_resume import assert_same
from test_training import records

PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
from factories import tiny_frozen
from ssrseg.training import Extensions, Interrupted, checkpoint, train
from test_training import settings_for

torch.set_num_threads(1)
root, second = Path(sys.argv[1]), os.environ.get("LOCAL_RANK") == "1"
config = {"steps": 4, "devices": 2, "log_every": 2, "checkpoint_every": 3, "evaluate_every": 4, "pictures_every": 2}
settings = settings_for(root, train=config)
train(settings, root / "whole", extensions=Extensions(foundation=tiny_frozen()))
stepped = checkpoint.CheckpointWriter.stepped

def killed(self, result):
    if second and result.step == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    stepped(self, result)

checkpoint.CheckpointWriter.stepped = killed
try:
    train(settings, root / "cut", extensions=Extensions(foundation=tiny_frozen()))
except Interrupted as left:
    assert (left.code, left.step) == (128 + signal.SIGTERM, 2)
    torch.manual_seed(99)
    checkpoint.CheckpointWriter.stepped = stepped
    train(None, root / "cut", resume=True, extensions=Extensions(foundation=tiny_frozen()))
early = settings_for(root, train=config | {"steps": 8, "evaluate_every": 1, "early_stop": 1}, optim={"lr": 0.05})
train(early, root / "early", extensions=Extensions(foundation=tiny_frozen()))
"""


def test_two_processes_stop_together_and_go_on_as_if_they_had_not(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, tmp_path / "program.py", tmp_path]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(tmp_path / "whole", tmp_path / "cut")
    states = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt")["generators"] for name in ("whole", "cut")]
    (stopped,) = records(tmp_path / "early", "stopped")  # both, or the other one would wait for ever
    assert stopped["step"] < 8
    assert (tmp_path / "early" / "student-last.safetensors").exists()
    assert states[0]["torch"].shape[0] == 2
    assert not torch.equal(states[0]["torch"][0], states[0]["torch"][1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in ("torch", "views", "python", "numpy"))
