"""Export: write the optimized program and the FP32 original in the format of every target."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.core import EdgewrightError, Model
from pipeline.target import Exported, Lowered, Target, Variant

logger = logging.getLogger(__name__)


def export(model: Model, targets: Sequence[Target], out_dir: Path) -> tuple[Exported, ...]:
    """Lower a model, and the original it came from, to every target.

    A target whose package is missing is skipped, and one that cannot hold the model has failed; each says why, and
    neither stops the others.

    Args:
        model: The optimized model; where it is quantized, it is lowered to integers.
        targets: From ``targets.get(name)``.
        out_dir: Where the artifacts go: ``<out_dir>/<target>/model.*``, ``original.*`` and ``original_<variant>.*``.
    """
    exported = tuple(_export_one(model, target, out_dir / target.name) for target in targets)
    for item in exported:
        logger.debug("%s: %s%s", item.target.name, item.status, f", {item.reason}" if item.reason else "")
    return exported


def _export_one(model: Model, target: Target, folder: Path) -> Exported:
    if extra := target.missing_package():
        return Exported(target=target, status="skipped", reason=f"not installed: pip install '{extra}'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        optimized = target.lower(model, folder, name="model")
        original = target.lower(model.original(), folder, name="original")
    except EdgewrightError as error:
        return Exported(target=target, status="failed", reason=str(error))
    variants = {variant: _variant(model.original(), target, folder, variant) for variant in target.variants}
    return Exported(target=target, status="ok", optimized=optimized, original=original, variants=variants)


def _variant(original: Model, target: Target, folder: Path, variant: Variant) -> Lowered | str:
    """A comparison's artifact, or why there is none: that does not stop what was asked for."""
    try:
        return target.lower(original, folder, name=f"original_{variant}", variant=variant)
    except EdgewrightError as error:
        return str(error)
