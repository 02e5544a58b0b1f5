"""Keys of stored results: hashes of everything that a result depends on, code and versions included."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from torch import nn

import targets
from pipeline.core import Model, callables
from pipeline.execution.prepare import Prepared
from pipeline.execution.stages import STAGES, source_of
from pipeline.machine.processor import cpu_name
from pipeline.models.digest import key_of, program_sha256, weights_sha256
from pipeline.recipe import StageStep
from pipeline.target import Target

PACKAGE = Path(__file__).parents[1]
UNRELATED = frozenset({"cli", "execution", "search", "report", "stages"})
"""Parts of the package that no stage builds on; a stage's own sources are hashed by themselves."""
VERSIONED = (
    "edgewright", "torch", "torchao", "neural-compressor", "onnx", "onnxruntime", "coremltools",
    "tensorflow", "litert-torch", "ai-edge-litert", "ethos-u-vela", "numpy", "transformers",
)  # fmt: skip
"""Packages whose versions a report states, and an artifact depends on."""


def model_key(prepared: Prepared) -> str:
    """The key of the model that a run starts from: its weights, what it computes, and the code that built it.

    The graph alone would not do: dropout, for one, is not part of it and matters to training.
    """
    model, source = prepared.model, prepared.recipe.model
    return key_of(
        weights=weights_sha256(model.module),
        program=program_sha256(model),
        factory=source.factory,
        kwargs=source.kwargs,
        code=None if source.factory is None else callables.code_sha256(source.factory, prepared.root),
        inputs=[spec.model_dump() for spec in model.inputs],
        outputs=model.outputs,
        states=model.states,
        dynamic={name: list(axes) for name, axes in model.dynamic.items()},
    )


def stage_key(step: StageStep, model: Model, key: str, shape: nn.Module, prepared: Prepared) -> str:
    """The key of one stage's result.

    Args:
        key: That of the model before the stage.
        shape: The architecture that the stage returns, where it is not the model's: a new student starts from its
            weights.
    """
    measured_on = STAGES[step.name].needs(step.config).measures
    sets = (prepared.train, prepared.calibration, prepared.held_out)
    return key_of(
        stage=step.name,
        config=step.config.model_dump(mode="json"),
        task=_task(prepared),
        budget=[budget.model_dump() for budget in prepared.budgets],
        seed=prepared.recipe.seed,
        model=key,
        student=None if shape is model.module else weights_sha256(shape),
        data=[samples and samples.sha256 for samples in sets],
        evaluation=prepared.evaluation.sha256,
        code=code_sha256(source_of(step.name)),
        packages=package_versions(),
        measured_on=None if measured_on is None else (cpu_name(), _options(prepared, measured_on)),
    )


def _task(prepared: Prepared) -> dict[str, Any]:
    """The task, and the code of the parts that are the user's own."""
    config = prepared.recipe.task
    own = () if config is None else filter(None, (*config.metrics, config.postprocess, config.loss))
    return {
        "name": prepared.task.name,
        "config": config and config.model_dump(mode="json"),
        "code": [callables.code_sha256(name, prepared.root) for name in own],
    }


def export_key(target: Target, model: Model, key: str, prepared: Prepared) -> str:
    """The key of one target's artifacts; ``key`` is that of the model."""
    return key_of(
        stage="export",
        target=target.name,
        config=_options(prepared, target.name),
        recipe=model.recipe_sha256,
        model=key,
        code=code_sha256(source_of("export"), Path(targets.__file__).parent / target.name),
        packages=package_versions(),
    )


def _options(prepared: Prepared, target: str) -> dict[str, Any] | None:
    """A target's options; None for one that the recipe does not name."""
    found = (step.config for step in prepared.recipe.targets if step.name == target)
    return next((config.model_dump(mode="json") for config in found), None)


def code_sha256(*paths: Path) -> str:
    """Hash of a stage's own sources (files or packages) and of every module of the pipeline it may build on."""
    shared = [file for file in sorted(PACKAGE.rglob("*.py")) if file.relative_to(PACKAGE).parts[0] not in UNRELATED]
    own = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in (*shared, *own))).hexdigest()


def package_versions() -> dict[str, str]:
    """The installed ones of `VERSIONED`."""
    versions = {}
    for package in VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
