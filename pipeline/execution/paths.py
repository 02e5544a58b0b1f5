"""The files and modules that a recipe names, looked for before anything heavy is imported.

Reading them comes later and tells more. A path that is wrong is told in an instant, with the words of whoever reads it.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core import CheckpointError, DataError
from pipeline.core.callables import require_module
from pipeline.core.files import require_file, require_folder
from pipeline.data.source import PATHS, DataSource
from pipeline.recipe import ModelSource, Recipe

FILES = ("npz", "coco", "table")
"""Keys of a set of samples that name a file; the other paths are folders."""


def require_paths(recipe: Recipe, root: Path) -> None:
    """Refuse a recipe that names a file, folder or module that is not there.

    Args:
        root: What relative paths start from.

    Raises:
        EdgewrightError: Names the path and the fix.
    """
    _require_model(recipe.model, root)
    for source in (recipe.data.train, recipe.data.evaluation, recipe.data.calibration):
        if source is not None:
            _require_source(source, root)
    for step in recipe.stages:
        student = getattr(step.config, "student", None)
        if student is not None:
            require_module(student.factory, root)
            if student.checkpoint is not None:
                require_file(root / student.checkpoint, CheckpointError)
    task = recipe.task
    for name in () if task is None else (*task.metrics, task.postprocess, task.loss):
        if name is not None:
            require_module(name, root)


def _require_model(model: ModelSource, root: Path) -> None:
    if model.factory is not None:
        require_module(model.factory, root)
    if model.checkpoint is not None and not _is_folder(root / model.checkpoint):  # which kind, its reader tells
        require_file(root / model.checkpoint, CheckpointError)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as of a name that is too long
        return False


def _require_source(source: DataSource, root: Path) -> None:
    for key in PATHS:
        path = getattr(source, key)
        if path is not None and key in FILES:
            require_file(root / path, DataError)
        elif path is not None:
            require_folder(root / path)
    for name in (source.factory, source.collate):
        if name is not None:
            require_module(name, root)
