"""The functions of the library: each takes plain modules and plain samples, and calls the stage of its name.

What is taken as a model and as samples, `pipeline.models.given` says, for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

import targets
from pipeline.core import Artifact, EdgewrightError, Model, Setting
from pipeline.data.readings import TAKEN, Samples
from pipeline.data.samples import SampleSet
from pipeline.execution import apply
from pipeline.execution.deliver import Start, report_on
from pipeline.execution.task import asked_for, settle_budgets
from pipeline.models.given import AnyModel, as_model, as_samples
from pipeline.recipe import (
    Budget,
    DistillConfig,
    PruneConfig,
    QuantizeConfig,
    Recipe,
    TargetStep,
    TaskConfig,
    parse_recipe,
    read_recipe,
)
from pipeline.report.model import Report
from pipeline.report.write import write_report as write
from pipeline.stages import benchmark as measuring
from pipeline.stages import distill as distilling
from pipeline.stages import export as exporting
from pipeline.stages import prune as pruning
from pipeline.stages import quantize as quantizing
from pipeline.stages.quantize import QatModule
from pipeline.target import Exported, Target
from pipeline.tasks.lookup import for_task, task_of
from pipeline.tasks.task import Task

AnyTask: TypeAlias = Task | TaskConfig | str
"""What a model is for: the name of a built-in task, or its configuration."""
AnyTarget: TypeAlias = Target | str
"""A target, or its name."""


def prune(
    model: AnyModel,
    config: PruneConfig,
    samples: Samples | None = None,
    *,
    task: AnyTask | None = None,
    train: Samples | None = None,
    target: AnyTarget | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> Model:
    """Remove channels until every budget of ``config`` is met; budgets are shares of the original.

    Args:
        model: A module, a `Model`, or the path of a program.
        config: ``PruneConfig(macs_ratio=0.5)`` keeps half of the multiply-accumulates.
        samples: What a plain module's inputs are read off, and what importance ``taylor`` and ``activation``,
            allocation ``sensitivity`` and residual blocks are measured on.
        task: What the model is for; suggested by the model and the labels when absent.
        train: Labelled or unlabelled samples that ``recover`` trains on.
        target: Where latency is measured, if that is a budget.
        seed: Of the order of the training samples.
        checkpoint: Where ``recover`` keeps its state, so that a killed one goes on; removed at the end.

    Raises:
        DataError: The samples are nothing that is taken, or not what the model takes.
        StageError: The model is a program rather than a module, cannot be traced, or cannot get that small.

    Example::

        small = ew.prune(net, ew.PruneConfig(macs_ratio=0.5), samples)
    """
    given, seen = as_model(model, train if samples is None else samples, where="samples")
    learned = None if train is None else as_samples(train, given, where="train")[1]
    return pruning.prune(
        given,
        config,
        None if samples is None else seen,
        task=_task(task, given, learned or seen),
        train=learned,
        target=None if target is None else _target(target),
        seed=seed,
        checkpoint=None if checkpoint is None else Path(checkpoint),
    )


def distill(
    model: AnyModel,
    config: DistillConfig | None = None,
    train: Samples | None = None,
    *,
    task: AnyTask | None = None,
    held_out: Samples | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    root: str | Path = Path(),
) -> Model:
    """Train a student to answer as the original does, and as the labels say where there are any.

    The student is the current model or, where ``config.student`` names one, another network in its place.

    Args:
        model: A module, a `Model`, or the path of an archive.
        config: Three epochs of SGD when absent; see `DistillConfig`.
        train: What to train on.
        task: What the model is for; suggested by the model and the labels when absent.
        held_out: Other samples, on which each epoch is scored by the task's first metric.
        seed: Of the order of the samples.
        checkpoint: Where the training's state is kept, so that a killed one goes on; removed at the end.
        log: CSV file of every step's and epoch's loss.
        root: What relative paths of ``config.student`` start from.

    Raises:
        DataError: The samples are nothing that is taken, or not what the model takes.
        StageError: The model is a program, which cannot be trained, or the loss diverges.

    Example::

        better = ew.distill(small, ew.DistillConfig(epochs=5), train_set)
    """
    given, learned = _with_samples(model, train, where="train")
    scored = None if held_out is None else as_samples(held_out, given, where="held_out")[1]
    return distilling.distill(
        given,
        config or DistillConfig(),
        learned,
        task=_task(task, given, learned),
        held_out=scored,
        seed=seed,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        log=None if log is None else Path(log),
        root=Path(root),
    )


def quantize(
    model: AnyModel,
    config: QuantizeConfig | None = None,
    calibration: Samples | None = None,
    *,
    budget: Budget | tuple[Budget, ...] | None = None,
    task: AnyTask | None = None,
    held_out: Samples | None = None,
    train: Samples | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
) -> Model:
    """Quantize a float module to static int8, calibrated on real samples.

    Args:
        model: A module, a `Model`, or the path of a program or an archive.
        config: Range methods, layers that stay in float, quantization-aware training …; see `QuantizeConfig`.
        calibration: A few hundred samples as the model sees them in use; labels are not needed.
        budget: How much worse each metric may get on the held-out samples; one percentage point, or 1 %, when absent.
        task: What the model is for; suggested by the model and the labels of ``held_out`` when absent.
        held_out: Samples that decide between configurations; a quarter of ``calibration`` when absent.
        train: Samples for quantization-aware training; only ``config.qat`` needs them.
        seed: Determines that quarter, and the order of the training samples.
        checkpoint, log: Of quantization-aware training; as for `distill`.

    Raises:
        CheckpointError: The module does not run on the samples, or takes or gives what no target can hold.
        DataError: The samples are nothing that is taken, are not what the model takes, or hold NaN or infinity.
        StageError: The module is no function of its samples, cannot be captured, or has no layer that is named.

    Example::

        int8 = ew.quantize(net, calibration=loader)
        int8.export("onnx", "model.onnx")
    """
    given, data = _with_samples(model, calibration, where="calibration")
    chosen_by = None if held_out is None else as_samples(held_out, given, where="held_out")[1]
    return quantizing.quantize(
        given,
        config or QuantizeConfig(),
        data,
        budget=budget or Budget(),
        task=_task(task, given, chosen_by or data),
        held_out=chosen_by,
        train=None if train is None else as_samples(train, given, where="train")[1],
        seed=seed,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        log=None if log is None else Path(log),
    )


def prepare_qat(
    model: AnyModel,
    config: QuantizeConfig | None = None,
    calibration: Samples | None = None,
    *,
    budget: Budget | tuple[Budget, ...] | None = None,
    task: AnyTask | None = None,
    held_out: Samples | None = None,
    seed: int = 0,
) -> QatModule:
    """The best post-training quantization as a module that your own loop can train.

    It rounds where, and as, the program will. Its parameters are weights, biases and a factor for each activation
    range. Batch norms are folded and dropout is left out. Call ``freeze_ranges()`` for the last part of the training:
    from then on it gives what the converted program gives.

    Args:
        model, config, calibration, budget, task, held_out, seed: As for `quantize`.

    Raises:
        DataError: As for `quantize`.
        StageError: As for `quantize`; or the module's own code fixes its batch size.

    Example::

        prepared = ew.prepare_qat(net, calibration=loader)
        optimizer = torch.optim.AdamW(prepared.parameters(), lr=1e-4)
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(prepared(images), labels).backward()
            optimizer.step()
        int8 = ew.convert(prepared)
    """
    given, data = _with_samples(model, calibration, where="calibration")
    chosen_by = None if held_out is None else as_samples(held_out, given, where="held_out")[1]
    return quantizing.prepare_qat(
        given,
        config or QuantizeConfig(),
        data,
        budget=budget or Budget(),
        task=_task(task, given, chosen_by or data),
        held_out=chosen_by,
        seed=seed,
    )


def convert(prepared: QatModule) -> Model:
    """The quantized model of a module from `prepare_qat`, as trained so far; the module stays as it is.

    It has the same record and the same kind of program as a model from `quantize`, and is exported in the same way.

    Raises:
        EdgewrightError: It is no module from `prepare_qat`.
    """
    if not isinstance(prepared, QatModule):
        fix = "give what prepare_qat returned, without a wrapper"
        raise EdgewrightError(f"is a {type(prepared).__name__}", where="prepared", fix=fix)
    return quantizing.convert(prepared)


def export(
    model: AnyModel, targets: AnyTarget | Sequence[AnyTarget], out_dir: str | Path, *, samples: Samples | None = None
) -> tuple[Exported, ...]:
    """Lower a model, and the original it came from, to targets, and run each file on a few samples.

    A target whose package is missing is skipped. One that cannot hold the model, or whose file computes something else
    than the model, has failed. Each says why, and none stops the others. `Model.export` writes a single file instead.

    Args:
        model: Where it is quantized, it is lowered to integers.
        targets: ``onnx``, ``coreml``, ``tflite``, or targets with options.
        out_dir: Where the artifacts go: ``<out_dir>/<target>/model.*`` and ``original.*``.
        samples: What the files are run on; a model that a stage has made has samples already.

    Raises:
        DataError: The samples are nothing that is taken, or not what the model takes.
        TargetError: There is no target of that name.

    Example::

        files = ew.export(int8, ["onnx", "tflite"], "out")
    """
    given, _ = as_model(model, samples, where="samples")
    return exporting.export(given, _targets(targets), Path(out_dir))


def export_file(model: Model, target: AnyTarget, path: Path, config: Setting | None = None) -> Artifact:
    """What `Model.export` does."""
    return exporting.export_file(model, _target(target, config), path)


def benchmark(
    model: AnyModel,
    exported: AnyTarget | Sequence[AnyTarget] | Sequence[Exported],
    samples: Samples,
    *,
    root: str | Path,
    task: AnyTask | None = None,
    budgets: Budget | tuple[Budget, ...] | None = None,
    batch_size: int = 256,
) -> Report:
    """Measure the original and every target on one evaluation set: accuracy, parity and latency.

    Args:
        model: The optimized model, with its original.
        exported: What `export` returned, or targets to export to first.
        samples: The evaluation set, with labels where there are any. Nothing is chosen by it.
        root: The folder of the artifacts; paths in the report are relative to it.
        task: What the model is for; suggested by the model and the labels when absent.
        budgets: What differences to the original are held against; one percentage point, or 1 %, when absent.
        batch_size: Samples per forward pass where the batch is dynamic. Latency is always taken at batch 1.

    Returns:
        The report, with its verdict. A notebook shows it as a table; `write_report` writes it as JSON and HTML.

    Raises:
        DataError: The samples are nothing that is taken, or not what the model takes.
        RecipeError: The task has no such metric, or it needs labels that the samples do not have.

    Example::

        report = ew.benchmark(int8, "onnx", (test_images, test_labels), root="out")
        print(report.targets[0].metrics, report.verdict)
    """
    start = Start.now()
    given, data = _with_samples(model, samples, where="samples")
    files = _exported(given, exported, Path(root))
    asked = _task(task, given, data)
    chosen = task_of(given, data, asked)
    data = for_task(data, chosen)
    wanted = budgets if isinstance(budgets, tuple) else (budgets or Budget(),)
    settled = settle_budgets(wanted or (Budget(),), chosen, data)
    original, records = measuring.benchmark(
        given, files, data, root=Path(root), task=chosen, budgets=settled, batch_size=batch_size
    )
    return report_on(
        given,
        original,
        records,
        start,
        name=type(given.reference).__name__,
        recipe=_as_recipe(given, files),
        task=chosen,
        named=asked is not None,
        budgets=settled,
        sets={"evaluation": data},
        seed=0,
    )


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    root: str | Path | None = None,
    store: str | Path | None = None,
) -> Report:
    """Run a recipe and write ``report.json``, ``report.html`` and the artifacts under ``out``.

    Args:
        recipe: The path of a YAML file, a mapping with the same keys, or a `Recipe`.
        out: The run's folder. Nothing is written before the whole recipe has been checked.
        root: What the recipe's relative paths start from: by default the folder of its file, else the current one.
        store: Where finished stages are kept, so that a killed or repeated run goes on from the last one;
            ``.store`` beside ``out`` when absent.

    Raises:
        EdgewrightError: Something the user can mend. What the check of the recipe refuses leaves nothing under ``out``;
            where a stage fails, the report says what was finished before it.

    Example::

        report = ew.run("recipe.yaml", "reports/mine")
    """
    folder = Path(recipe).parent if isinstance(recipe, str | Path) else Path()
    read: Recipe
    if isinstance(recipe, str | Path):
        read = read_recipe(Path(recipe))
    elif isinstance(recipe, Mapping):
        read = parse_recipe(dict(recipe))
    elif isinstance(recipe, Recipe):
        read = recipe
    else:
        fix = "give the path of a YAML file, a mapping with the same keys, or a Recipe"
        raise EdgewrightError(f"is a {type(recipe).__name__}", where="recipe", fix=fix)
    root = folder if root is None else Path(root)
    return apply.run(read, Path(out), root=root, store=None if store is None else Path(store))


def write_report(report: Report, folder: str | Path) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html`` into a folder, which is created if missing; returns the two paths."""
    return write(report, Path(folder))


def _with_samples(model: AnyModel, samples: Samples | None, *, where: str) -> tuple[Model, SampleSet]:
    """A model and samples that it cannot do without."""
    if samples is None:
        raise EdgewrightError("no samples are given", where=where, fix=f"give {TAKEN}")
    given, found = as_model(model, samples, where=where)
    assert found is not None  # there were samples
    return given, found


def _task(task: AnyTask | None, model: Model, samples: SampleSet | None) -> Task | None:
    if task is None or isinstance(task, Task):
        return task
    if samples is None:
        raise EdgewrightError("a task is for samples, and there are none", where="task", fix="give samples")
    if not isinstance(task, TaskConfig | str):
        raise EdgewrightError(f"is a {type(task).__name__}", where="task", fix="give a name, such as 'detection'")
    config = TaskConfig(name=task) if isinstance(task, str) else task
    return asked_for(config, model, samples)


def _target(target: AnyTarget, config: Setting | None = None) -> Target:
    """A target of that name, with options of its own kind."""
    if not isinstance(target, str):
        return target
    found = targets.get(target)
    if config is None:
        return found
    try:
        return targets.get(target, TargetStep.model_validate({target: config}).config)
    except ValidationError as error:
        problem = f"{type(config).__name__}: {error.errors()[0]['msg']}"
        raise EdgewrightError(problem, where="config", fix=f"give {target.capitalize()}Config(…)") from None


def _targets(given: Any) -> list[Target]:
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    return [_target(each) for each in several]


def _exported(model: Model, given: Any, root: Path) -> Sequence[Exported]:
    """Files that there are, or those of targets that are exported to now."""
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else ()
    files = [each for each in several if isinstance(each, Exported)]
    return files if several and len(files) == len(several) else exporting.export(model, _targets(given), root)


def _as_recipe(model: Model, files: Sequence[Exported]) -> dict[str, Any]:
    """What was done to a model, as a recipe has it."""
    return {
        "name": type(model.reference).__name__,
        "stages": [{record.stage: record.config} for record in model.history],
        "targets": [item.target.name for item in files],
    }
