"""The stages that a recipe can name.

To add one, write its module with a `Stage`, add its configuration to `pipeline.recipe.StageStep`, and list it here.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.stages import distill
from pipeline.stages.contract import Stage
from pipeline.stages.prune import needs as prune
from pipeline.stages.quantize import needs as quantize

STAGES: dict[str, Stage] = {
    "prune": prune.STAGE,
    "distill": distill.STAGE,
    "quantize": quantize.STAGE,
}


def source_of(stage: str) -> Path:
    """Where a stage's own source lies: a package or a file of its name."""
    package = Path(__file__).parents[1] / "stages" / stage
    return package if package.is_dir() else package.with_suffix(".py")
