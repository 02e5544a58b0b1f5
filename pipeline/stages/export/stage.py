"""The export stage: every target's files, each run and compared with what it was made from as soon as it is written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.core import Artifact, EdgewrightError, Model, OutputError, TargetError, first_line
from pipeline.core.files import atomic_write
from pipeline.machine.memory import require_memory
from pipeline.stages.export.verification import verify
from pipeline.target import Exported, Lowered, Target, Variant

logger = logging.getLogger(__name__)

COPIES = 6
"""How often a conversion and its check hold the FP32 weights: 3.5 (onnx), 4.2 (coreml) and 5.3 (tflite) were measured,
on 146 MB of linear layers."""


def export(model: Model, targets: Sequence[Target], out_dir: Path) -> tuple[Exported, ...]:
    """Lower a model, and the original it came from, to every target, and run each file on the model's examples.

    A target whose package is missing is skipped. One that cannot hold the model, or whose file computes something else
    than the model, has failed. Each says why, and none stops the others.

    Args:
        model: The optimized model; where it is quantized, it is lowered to integers. Without `Model.examples`, which
            every stage that sees samples sets, the files are written and not run.
        targets: From ``targets.get(name)``.
        out_dir: Where the artifacts go: ``<out_dir>/<target>/model.*``, ``original.*`` and ``original_<variant>.*``.
    """
    exported = tuple(_export_one(model, target, out_dir / target.name) for target in targets)
    for item in exported:
        logger.debug("%s: %s%s", item.target.name, item.status, f", {item.reason}" if item.reason else "")
    return exported


def export_file(model: Model, target: Target, path: Path) -> Artifact:
    """Lower a model to one target, and run the file on the model's examples; the file appears complete or not at all.

    Args:
        path: Of the artifact itself, with the target's suffix.

    Raises:
        OutputError: The file cannot be written.
        TargetError: The target's package is missing, or it cannot hold the model, or the file computes something else.
    """
    where = f"{target.name}: {path}"
    if extra := target.missing_package():
        raise TargetError("is not installed", where=target.name, fix=f"pip install '{extra}'")
    with atomic_write(path) as staged:
        exported = _lowered(model, target, staged.parent, path.stem)
        if exported.status != "ok":
            raise TargetError(exported.reason or "failed", where=where)
        assert exported.optimized is not None
        if exported.optimized.path.name != path.name:
            problem, suffix = f"is not the name of a file of {target.name}", exported.optimized.path.suffix
            raise TargetError(problem, where=where, fix=f"call it {path.with_suffix(suffix).name}")
        for note in staged.parent.glob("*.json"):  # what a target keeps for its own reports
            note.unlink()
        shown = exported.verified
        return Artifact(
            target=target.name,
            path=path,
            size_bytes=exported.optimized.size_bytes,
            samples=0 if shown is None else shown.samples,
            outputs_db={} if shown is None else shown.optimized_sqnr_db,
            notes=(*exported.optimized.notes, *(() if shown is None else shown.explained)),
        )


def _lowered(model: Model, target: Target, folder: Path, name: str) -> Exported:
    """The optimized model's artifact alone, verified where the model has examples."""
    try:
        _require_memory(model, target)
        optimized = target.lower(model, folder, name=name)
        optimized = replace(optimized, notes=(*model.notes, *_fixed_sizes(model, target), *optimized.notes))
        written = Exported(target=target, status="ok", optimized=optimized)
        return verify(written, model, folder) if model.examples else written
    except OutputError:
        raise
    except Exception as error:  # whatever a vendor's converter or runtime raises
        return Exported(target=target, status="failed", reason=_reason(error))


def _export_one(model: Model, target: Target, folder: Path) -> Exported:
    if extra := target.missing_package():
        return Exported(target=target, status="skipped", reason=f"not installed: pip install '{extra}'")
    try:
        _require_memory(model, target)
        folder.mkdir(parents=True, exist_ok=True)
        optimized = target.lower(model, folder, name="model")
        original = target.lower(model.original(), folder, name="original")
        optimized = replace(optimized, notes=(*model.notes, *_fixed_sizes(model, target), *optimized.notes))
        written = Exported(target=target, status="ok", optimized=optimized, original=original)
        exported = verify(written, model, folder) if model.examples else written
    except OutputError:
        raise  # no other target can be written either
    except Exception as error:  # whatever a vendor's converter or runtime raises, the other targets go on
        return Exported(target=target, status="failed", reason=_reason(error))
    if exported.status != "ok":
        return exported
    variants = {variant: _variant(model.original(), target, folder, variant) for variant in target.variants}
    return replace(exported, variants=variants)


def _fixed_sizes(model: Model, target: Target) -> tuple[str, ...]:
    """Where a target's file takes one size of an input only, and the recipe leaves it open."""
    if target.capabilities.open_sizes:
        return ()
    return tuple(
        f"input {spec.name!r}, open as {spec.written}, has the samples' size in this file: {list(spec.shape)}"
        for spec in model.inputs
        if spec.open_sizes
    )


def _require_memory(model: Model, target: Target) -> None:
    """Refuse a conversion that would not fit, before the system ends the process."""
    weights: int = sum(value.nbytes for value in model.reference.state_dict().values())
    require_memory(f"export to {target.name}", COPIES * weights, fix="export on a machine with more memory")


def _variant(original: Model, target: Target, folder: Path, variant: Variant) -> Lowered | str:
    """A comparison's artifact, or why there is none: that does not stop what was asked for."""
    try:
        return target.lower(original, folder, name=f"original_{variant}", variant=variant)
    except Exception as error:  # as above
        return _reason(error)


def _reason(error: Exception) -> str:
    """An error of ours says where and how to mend it; another library's says at least what it is."""
    if isinstance(error, EdgewrightError):
        return str(error)
    logger.debug("an error that no target expects", exc_info=error)
    return f"{type(error).__name__}: {first_line(error)}"
