"""edgewright: from a trained FP32 PyTorch model to small, fast, proven INT8 models.

Every stage is a function that other projects can call; names are imported when they are first used, so that
``import pipeline`` takes milliseconds and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.checkpoint import from_module as from_module
    from pipeline.checkpoint import load as load
    from pipeline.core import EdgewrightError as EdgewrightError
    from pipeline.core import ModelArtifact as ModelArtifact
    from pipeline.core import Preprocessing as Preprocessing
    from pipeline.core import TensorSpec as TensorSpec
    from pipeline.data import SampleSet as SampleSet
    from pipeline.data import from_dataset as from_dataset
    from pipeline.data import open_samples as open_samples
    from pipeline.recipe import Budget as Budget
    from pipeline.recipe import DataSource as DataSource
    from pipeline.recipe import DistillConfig as DistillConfig
    from pipeline.recipe import ModelSource as ModelSource
    from pipeline.recipe import PruneConfig as PruneConfig
    from pipeline.recipe import QuantizeConfig as QuantizeConfig
    from pipeline.recipe import Recipe as Recipe
    from pipeline.recipe import read_recipe as read_recipe
    from pipeline.report.model import Report as Report
    from pipeline.report.model import read_report as read_report
    from pipeline.runner import run as run
    from pipeline.stages.benchmark import benchmark as benchmark
    from pipeline.stages.distill import distill as distill
    from pipeline.stages.export import export as export
    from pipeline.stages.prune import prune as prune
    from pipeline.stages.quantize import quantize as quantize

_HOMES = {
    "checkpoint": ("from_module", "load"),
    "core": ("EdgewrightError", "ModelArtifact", "Preprocessing", "TensorSpec"),
    "data": ("SampleSet", "from_dataset", "open_samples"),
    "recipe": (
        "Budget", "DataSource", "DistillConfig", "ModelSource", "PruneConfig", "QuantizeConfig",
        "Recipe", "read_recipe",
    ),
    "report.model": ("Report", "read_report"),
    "runner": ("run",),
    "stages.benchmark": ("benchmark",),
    "stages.distill": ("distill",),
    "stages.export": ("export",),
    "stages.prune": ("prune",),
    "stages.quantize": ("quantize",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605 - the names above, listed once


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pipeline.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
