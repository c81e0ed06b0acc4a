"""What `tools/streets` draws, for the studies that need more pictures than the package ships."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from streets.anything import draw_anything
from streets.dataset import write_dataset

__all__ = ["draw_anything", "write_dataset"]
