"""Apply a recipe: check everything first, then stage by stage, each stored; then deliver."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from pipeline.core import Model, StageError, StageRecord
from pipeline.core.files import write_bytes, write_text
from pipeline.execution.deliver import Start, deliver, deliver_unfinished
from pipeline.execution.folder import claimed, require_space
from pipeline.execution.keys import model_key, package_versions, stage_key
from pipeline.execution.log import LOG, OLDER, run_log
from pipeline.execution.prepare import Prepared, check
from pipeline.execution.processes import decided_by_the_first, processes, wait_for_the_first
from pipeline.execution.stages import STAGES
from pipeline.execution.store import Store
from pipeline.machine.processor import cpu_name
from pipeline.models.capture import capture, example_inputs
from pipeline.models.checkpoints.program import read_program
from pipeline.models.digest import weights_sha256
from pipeline.models.structure import restore_module, save_module
from pipeline.progress import announced, console
from pipeline.recipe import Recipe, StageStep
from pipeline.report.model import Report, read_report
from pipeline.report.write import write_report
from pipeline.tasks.evaluation import evaluate
from pipeline.tasks.loop import loop_of, of_sequences
from pipeline.tasks.prediction import predictor

logger = logging.getLogger(__name__)

SMALL_FILES_BYTES = 20_000_000
"""Reports, logs and the fixed part of each file."""


def run(recipe: Recipe, out: Path, *, root: Path = Path(), store: Path | None = None) -> Report:
    """Run a recipe and write ``report.json``, ``report.html`` and the artifacts under ``out``.

    Args:
        recipe: From `read_recipe`, or built in Python.
        out: The run's folder. Nothing is written before the whole recipe has been checked.
        root: What the recipe's relative paths start from: the folder of its file.
        store: Where finished stages are kept, so that a killed or repeated run goes on from the last one;
            ``.store`` beside ``out`` when absent. Each stage that trains logs its loss under ``out`` as it goes.

    Raises:
        EdgewrightError: Something the user can mend. What the check of the recipe refuses leaves nothing under ``out``;
            where a stage fails, the report says what was finished before it.
    """
    start = Start.now()
    console.quiet = console.quiet or not processes().is_main_process
    prepared = check(recipe, root)
    _say(prepared)
    kept_in = store or out.parent / ".store"
    for folder in (out, kept_in):
        require_space(folder, _space_bytes(prepared))
    if not processes().is_main_process:
        return _run_stages(prepared, Store(kept_in), out, start)
    with claimed(out, _entries(recipe)), run_log(out):
        return _logged(prepared, Store(kept_in), out, start)


def _logged(prepared: Prepared, results: Store, out: Path, start: Start) -> Report:
    """All stages and delivery, with their beginning, recipe and end in the log."""
    versions = ", ".join(f"{package} {version}" for package, version in package_versions().items())
    logger.debug("run of %s begins: %s; %s", prepared.recipe.name, cpu_name(), versions)
    logger.debug("recipe: %s", prepared.recipe.model_dump_json(exclude_none=True))
    for warning in prepared.warnings:
        logger.debug("warning: %s", warning)
    try:
        report = _run_stages(prepared, results, out, start)
    except BaseException:
        logger.debug("run of %s ends with an error", prepared.recipe.name, exc_info=True)
        raise
    passed = report.verdict is not None and report.verdict.passed
    logger.debug("run of %s is done: %s", prepared.recipe.name, "passed" if passed else "not passed")
    return report


def _say(prepared: Prepared) -> None:
    """What a user should know before the first stage runs: how data were read, and what is doubtful."""
    sets = (prepared.train, prepared.calibration, prepared.evaluation)
    notes = dict.fromkeys(note for samples in sets if samples is not None for note in samples.source.notes)
    for text in (*notes, *(f"warning: {warning}" for warning in prepared.warnings)):
        console.print(text, markup=False, soft_wrap=True)


def _entries(recipe: Recipe) -> list[str]:
    """The names of what a run may write into its folder."""
    logs = [f"training_{number}.csv" for number in range(1, len(recipe.stages) + 1)]
    return ["report.json", "report.html", LOG, OLDER, *logs, *(step.name for step in recipe.targets)]


def _space_bytes(prepared: Prepared) -> int:
    """A generous estimate of what a run writes: its weights once for each stage, and a few times for each target."""
    weights: int = sum(value.nbytes for value in prepared.model.module.state_dict().values())
    return (2 * len(prepared.recipe.stages) + 4 * len(prepared.targets)) * weights + SMALL_FILES_BYTES


def _run_stages(prepared: Prepared, results: Store, out: Path, start: Start) -> Report:
    """All stages, then delivery."""
    recipe = prepared.recipe
    model, key = prepared.model, model_key(prepared)
    for number, step in enumerate(recipe.stages, start=1):
        try:
            with announced(f"[{number}/{len(recipe.stages) + 2}] {step.name}"):
                model, key = _apply(step, model, key, prepared, results, training_log=out / f"training_{number}.csv")
        except Exception as error:
            if processes().is_main_process:
                _report_unfinished(prepared, model, step.name, error, out, start)
            raise
    if processes().is_main_process:
        report = deliver(prepared, model, key, results, out, start)
        write_report(report, out)
    wait_for_the_first()
    return report if processes().is_main_process else read_report(out / "report.json")


def _report_unfinished(prepared: Prepared, model: Model, stage: str, error: Exception, out: Path, start: Start) -> None:
    """Write the report of what was finished before a stage failed, unless that fails, too."""
    try:
        write_report(deliver_unfinished(prepared, model, stage, error, out, start), out)
    except Exception:  # the stage's own error is what the user has to see
        logger.debug("the report of the unfinished run was not written", exc_info=True)
    else:
        console.print(f"  {stage} failed; report of what was finished: {out / 'report.html'}")


def _apply(
    step: StageStep, model: Model, key: str, prepared: Prepared, store: Store, *, training_log: Path
) -> tuple[Model, str]:
    """One stage: its stored result where there is one, else computed, stored, and read back.

    Args:
        key: That of the model.

    Returns:
        The new model, and its key.
    """
    stage = STAGES[step.name]
    needs = stage.needs(step.config)
    shape = stage.architecture(model, step.config, prepared.supplies())
    result_key = stage_key(step, model, key, shape, prepared)
    supplies = prepared.supplies(
        checkpoint=store.under_way(result_key) if needs.trains else None, log=training_log if needs.logs else None
    )

    def call(before: Model) -> Model:
        return stage.apply(before, step.config, supplies)

    def compute(folder: Path) -> None:
        _write(_checked(call, model, step.name), prepared, folder)
        if supplies.log is not None:
            write_bytes(folder / "training.csv", supplies.log.read_bytes())

    logger.debug("stage %s has key %s", step.name, result_key)
    folder = _computed_together(store, result_key, compute, lambda: call(model) if needs.trains else None)
    if supplies.log is not None and processes().is_main_process:
        write_bytes(supplies.log, (folder / "training.csv").read_bytes())  # also where an earlier run did the training
    return _read(model, shape, folder), result_key


def _computed_together(
    store: Store, key: str, compute: Callable[[Path], None], take_part: Callable[[], object]
) -> Path:
    """The folder of a result. Where it is missing, the first process computes it, and the others take part or wait."""
    if decided_by_the_first(store.holds(key)):
        console.print("  finished earlier, taken from the store")
    elif processes().is_main_process:
        store.entry(key, compute)
    else:
        take_part()
    wait_for_the_first()
    return store.folder_of(key)


def _write(result: Model, prepared: Prepared, folder: Path) -> None:
    """Store a stage's result: its record, with the metrics on the evaluation samples, and its module."""
    module, reference = (of_sequences(each, loop_of(result)) for each in (result.module, result.reference))
    metrics = evaluate(module, prepared.evaluation, prepared.task, reference=reference)
    known = {name: value for name, value in metrics.items() if math.isfinite(value)}
    record = result.history[-1].model_copy(update={"metrics": known})
    write_text(folder / "record.json", record.model_dump_json())
    if result.quantized:
        buffer = io.BytesIO()  # torch's own writer ends the process where the disk is full
        program = capture(result.module, result.inputs, examples=result.examples, dynamic=result.dynamic)
        torch.export.save(program, buffer)
        write_bytes(folder / "program.pt2", buffer.getvalue())
    else:
        save_module(result.module, folder / "module.safetensors")


def _read(model: Model, shape: nn.Module, folder: Path) -> Model:
    """The model after a stage whose result was stored."""
    record = StageRecord.model_validate_json((folder / "record.json").read_bytes())
    program = folder / "program.pt2"
    if program.exists():
        return model.after(read_program(program).module(), record, quantized=True)
    return model.after(restore_module(shape, folder / "module.safetensors"), record)


def _checked(call: Callable[[Model], Model], model: Model, stage: str) -> Model:
    """Run a stage and hold it to its contract, on one of the model's real samples.

    Raises:
        StageError: It changed its input, its interface, or its record-keeping, or its outputs are not finite.
    """
    before = weights_sha256(model.module)
    result = call(model)
    inputs = example_inputs(result.examples or result.inputs)
    expected, outputs = predictor(model.reference)(inputs), predictor(result.module)(inputs)
    broken = {
        "it changed its input": weights_sha256(model.module) != before,
        "it did not add exactly one record": len(result.history) != len(model.history) + 1,
        "the shapes of its outputs changed": [o.shape for o in outputs] != [e.shape for e in expected],
        "its outputs are not finite": not all(bool(torch.isfinite(output).all()) for output in outputs),
    }
    for problem, is_broken in broken.items():
        if is_broken:
            raise StageError(problem, where=f"stage {stage}")
    return result
