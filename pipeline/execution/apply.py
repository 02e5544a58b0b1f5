"""Apply a recipe: check everything first, then stage by stage, each stored; then export, benchmark and report.

Under ``accelerate launch`` or ``torchrun`` several processes run a recipe together. All take part in training; the
first one does the rest and alone writes, while the others wait. They must see the same folders.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from pydantic import TypeAdapter
from torch import nn

import targets
from pipeline.core import Model, RecipeError, StageError, StageRecord
from pipeline.data.samples import SampleSet, open_samples
from pipeline.execution.store import Store, code_sha256
from pipeline.machine.processor import all_cores, cpu_features, cpu_name
from pipeline.models.capture import capture, example_inputs
from pipeline.models.digest import key_of, weights_sha256
from pipeline.models.load import load
from pipeline.models.structure import restore_module, save_module
from pipeline.progress import console
from pipeline.recipe import QatConfig, Recipe, StageStep
from pipeline.report.model import BudgetRecord, DataRecord, Environment, Report, RunInfo, TargetRecord, read_report
from pipeline.report.write import write_report
from pipeline.stages.benchmark import benchmark
from pipeline.stages.distill import distill, first_student
from pipeline.stages.export import export
from pipeline.stages.prune import prune
from pipeline.stages.quantize import quantize
from pipeline.target import Exported, Lowered, Target, Variant
from pipeline.tasks.metrics import classifies, evaluate, predictor

HELD_OUT = 2_000
PACKAGES = (
    "edgewright", "torch", "torchao", "torch-pruning", "neural-compressor", "onnx", "onnxruntime", "coremltools",
    "tensorflow", "litert-torch", "ai-edge-litert", "ethos-u-vela", "numpy",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A recipe whose every part has been opened and checked."""

    recipe: Recipe
    model: Model
    targets: tuple[Target, ...]
    evaluation: SampleSet
    train: SampleSet | None
    calibration: SampleSet | None
    held_out: SampleSet | None
    root: Path


def run(recipe: Recipe, out: Path, *, root: Path = Path(), store: Path | None = None) -> Report:
    """Run a recipe and write ``report.json``, ``report.html`` and the artifacts under ``out``.

    Args:
        recipe: From `read_recipe`, or built in Python.
        out: The run's folder. Nothing is written before the whole recipe has been checked.
        root: What the recipe's relative paths start from: the folder of its file.
        store: Where finished stages are kept, so that a killed or repeated run goes on from the last one;
            ``.store`` beside ``out`` when absent. Each stage that trains logs its loss under ``out`` as it goes.

    Raises:
        EdgewrightError: Something the user can mend; nothing has been written under ``out`` then.
    """
    started_at, started = datetime.now(UTC), time.monotonic()
    processes = _processes()
    console.quiet = not processes.is_main_process
    prepared = check(recipe, root)
    shelf = Store(store or out.parent / ".store")
    model, key = prepared.model, weights_sha256(prepared.model.module)
    for index, step in enumerate(recipe.stages):
        with _announced(f"[{index + 1}/{len(recipe.stages) + 2}] {step.name}"):
            model, key = _stage(step, model, key, prepared, shelf, log=out / f"training_{index + 1}.csv")
    if processes.is_main_process:
        report = _finish(prepared, model, key, shelf, out, started_at, started)
        write_report(report, out)
    _wait_for_the_first()
    return report if processes.is_main_process else read_report(out / "report.json")


def _processes() -> PartialState:
    """The processes that share this run, usually one; those that do not work wait for the one that does.

    Without being told that there is no accelerator, accelerate would take processes on a CPU for runs of their own.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu, timeout=timedelta(days=7))


def _wait_for_the_first() -> None:
    """Return when the first process has come here too."""
    broadcast_object_list([None])


def _finish(
    prepared: Prepared,
    model: Model,
    key: str,
    store: Store,
    out: Path,
    started_at: datetime,
    started: float,
) -> Report:
    """Export, benchmark, and say what came of it."""
    recipe = prepared.recipe
    with _announced(f"[{len(recipe.stages) + 1}/{len(recipe.stages) + 2}] export"):
        exported = [_export(target, model, key, prepared, store, out) for target in prepared.targets]
    with _announced(f"[{len(recipe.stages) + 2}/{len(recipe.stages) + 2}] benchmark"):
        original, records = benchmark(model, exported, prepared.evaluation, root=out)
    sets = {"train": prepared.train, "calibration": prepared.calibration, "evaluation": prepared.evaluation}
    return Report(
        run=RunInfo(
            id=f"{recipe.name}-{started_at:%Y%m%dT%H%M%SZ}",
            started_at=started_at,
            duration_s=time.monotonic() - started,
            recipe=recipe.model_dump(mode="json", exclude_none=True),
            environment=_environment(),
            seeds={"run": recipe.seed},
        ),
        data={
            role: DataRecord(name=samples.name, samples=len(samples), sha256=samples.sha256)
            for role, samples in sets.items()
            if samples is not None
        },
        original=original,
        stages=model.history,
        budget=_budget(recipe, original.metrics, records),
        targets=records,
    )


def check(recipe: Recipe, root: Path = Path()) -> Prepared:
    """Open everything a recipe names and refuse what cannot work, before anything is computed or written.

    Raises:
        EdgewrightError: Names the file, the field and the fix.
    """
    model = replace(
        load(recipe.model, root),
        preprocessing=recipe.data.preprocessing,
        recipe_sha256=hashlib.sha256(recipe.model_dump_json().encode()).hexdigest(),
    )
    verbs = {step.name for step in recipe.stages}
    for verb, role in (("distill", "train"), ("quantize", "calibration")):
        if verb in verbs and getattr(recipe.data, role) is None:
            raise RecipeError(f"stage {verb!r} needs samples", where=f"data.{role}", fix=f"add data.{role}: {{npz: …}}")
    if any(_qat(step) is not None for step in recipe.stages):
        if recipe.data.train is None:
            raise RecipeError("qat needs samples", where="data.train", fix="add data.train: {npz: …}, or remove qat")
        if _processes().num_processes > 1:
            raise RecipeError("qat trains in one process", where="stages: quantize: qat", fix="run without a launcher")
    if _processes().num_processes > 1 and any(_recovers(step) and _is_timed(step) for step in recipe.stages):
        raise RecipeError(
            "every process would prune by its own clock, and then train another network",
            where="stages: prune: latency_target",
            fix="run without a launcher, or train in a distill stage instead of recover",
        )
    sets = {
        role: open_samples(source, model.inputs, recipe.data.preprocessing, name=role, root=root)
        for role in ("train", "calibration", "evaluation")
        if (source := getattr(recipe.data, role)) is not None
    }
    outputs = predictor(model.module)(example_inputs(model.inputs))
    for samples in sets.values():
        if samples.labelled and classifies(outputs):
            samples.check_labels(outputs[0].shape[1])
        _ = samples.sha256  # reads every sample, so that a bad one is found now and not after an hour of training
    _check_budget(recipe, outputs, sets["evaluation"])
    found = tuple(targets.get(step.name, step.config) for step in recipe.targets)
    if "quantize" in verbs:
        for target in found:
            if "int8" not in target.capabilities.weight_dtypes:
                raise RecipeError("cannot hold int8 weights", where=f"targets.{target.name}", fix="remove the target")
    for step in recipe.stages:
        if step.distill is not None and step.distill.student is not None:
            first_student(model, step.distill, root=root)
    train, calibration, held_out = _hold_out(sets.get("train"), sets.get("calibration"), recipe.seed)
    return Prepared(
        recipe=recipe,
        model=model,
        targets=found,
        evaluation=sets["evaluation"],
        train=train,
        calibration=calibration,
        held_out=held_out,
        root=root,
    )


def _check_budget(recipe: Recipe, outputs: tuple[torch.Tensor, ...], evaluation: SampleSet) -> None:
    if not all(torch.isfinite(output).all() for output in outputs if output.is_floating_point()):
        raise StageError("the original model's outputs are not finite", where=str(recipe.model.checkpoint))
    if not classifies(outputs):
        raise RecipeError(
            f"metric {recipe.budget.metric!r} needs logits (N, classes), but the model's first output has shape "
            f"{['N', *outputs[0].shape[1:]]}",
            where="budget.metric",
        )
    if recipe.budget.metric == "top1" and not evaluation.labelled:
        raise RecipeError(
            "top1 needs labels, and the evaluation set has none",
            where="budget.metric",
            fix="name its labels array (data.evaluation.labels), or use metric: agreement",
        )


def _hold_out(
    train: SampleSet | None, calibration: SampleSet | None, seed: int
) -> tuple[SampleSet | None, SampleSet | None, SampleSet | None]:
    """Training, calibration and held-out samples: what stages choose by is neither fitted nor reported on."""
    source = train or calibration
    if source is None:
        return None, None, None
    kept, held_out = source.split(min(HELD_OUT, max(1, len(source) // 8)), seed)
    if train is None:
        return None, kept, held_out
    if calibration is not None and calibration.source.where == train.source.where:
        used = set(held_out.indices)
        calibration = replace(calibration, indices=tuple(i for i in calibration.indices if i not in used))
    return kept, calibration, held_out


def _stage(
    step: StageStep, model: Model, key: str, prepared: Prepared, store: Store, *, log: Path
) -> tuple[Model, str]:
    """One stage: its stored result where there is one, else computed, stored, and read back."""
    call, source = _bind(step, prepared)
    sets = (prepared.train, prepared.calibration, prepared.held_out)
    shape = _same_architecture(step, model, prepared)
    stage_key = key_of(
        stage=step.name,
        config=step.config.model_dump(mode="json"),
        budget=prepared.recipe.budget.model_dump(),
        seed=prepared.recipe.seed,
        model=key,
        student=None if shape is model.module else weights_sha256(shape),
        data=[samples and samples.sha256 for samples in sets],
        evaluation=prepared.evaluation.sha256,
        code=code_sha256(source),
        torch=torch.__version__,
    )
    logs = step.distill is not None or _qat(step) is not None
    trains = logs or _recovers(step)
    if trains:
        call = partial(call, checkpoint=store.under_way(stage_key), **({"log": log} if logs else {}))

    def compute(folder: Path) -> None:
        result = _checked(call, model, step.name)
        record = result.history[-1]
        metrics = evaluate(result.module, prepared.evaluation, reference=model.reference)
        (folder / "record.json").write_text(record.model_copy(update={"metrics": metrics}).model_dump_json())
        if logs:
            shutil.copyfile(log, folder / "training.csv")
        if result.quantized:
            torch.export.save(capture(result.module, model.inputs), folder / "program.pt2")
        else:
            save_module(result.module, folder / "module.safetensors")

    folder = _computed_together(store, stage_key, compute, lambda: call(model) if trains else None)
    if logs and _processes().is_main_process:
        log.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "training.csv", log)  # also where the training took place in an earlier run
    record = StageRecord.model_validate_json((folder / "record.json").read_bytes())
    program = folder / "program.pt2"
    module = (
        torch.export.load(program).module()
        if program.exists()
        else restore_module(shape, folder / "module.safetensors")
    )
    return model.after(module, record, quantized=program.exists()), stage_key


def _same_architecture(step: StageStep, model: Model, prepared: Prepared) -> nn.Module:
    """A module of the architecture, and any width, that the stage will return: only a new student has another."""
    if step.distill is None or step.distill.student is None:
        return model.module
    return first_student(model, step.distill, seed=prepared.recipe.seed, root=prepared.root)


def _computed_together(
    store: Store, key: str, compute: Callable[[Path], None], take_part: Callable[[], object]
) -> Path:
    """The folder of a result. Where it is missing, the first process computes it, and the others take part or wait."""
    processes = _processes()
    (found,) = broadcast_object_list([store.holds(key)])  # the first process's word, lest they disagree
    if found:
        console.print("  finished earlier, taken from the store")
    elif processes.is_main_process:
        store.entry(key, compute)
    else:
        take_part()
    _wait_for_the_first()
    return store.folder_of(key)


def _bind(step: StageStep, prepared: Prepared) -> tuple[Callable[..., Model], Path]:
    """A stage's function with everything but the artifact filled in, and where its source lies."""
    stages = Path(__file__).parents[1] / "stages"
    seed, held_out = prepared.recipe.seed, prepared.held_out
    if step.prune is not None:
        data = prepared.calibration or prepared.train
        timed_on = next((target for target in prepared.targets if target.name == step.prune.latency_target), None)
        return partial(
            prune, config=step.prune, data=data, train=prepared.train, target=timed_on, seed=seed
        ), stages / "prune"
    if step.distill is not None:
        assert prepared.train is not None  # check() has seen to it
        return partial(
            distill, config=step.distill, data=prepared.train, held_out=held_out, seed=seed, root=prepared.root
        ), stages / "distill.py"
    assert step.quantize is not None
    assert prepared.calibration is not None
    return partial(
        quantize,
        config=step.quantize,
        data=prepared.calibration,
        budget=prepared.recipe.budget,
        held_out=held_out,
        train=prepared.train,
        seed=seed,
    ), stages / "quantize"


def _qat(step: StageStep) -> QatConfig | None:
    return None if step.quantize is None else step.quantize.qat


def _recovers(step: StageStep) -> bool:
    return step.prune is not None and step.prune.recover is not None


def _is_timed(step: StageStep) -> bool:
    return step.prune is not None and step.prune.latency_target is not None


def _checked(call: Callable[[Model], Model], model: Model, stage: str) -> Model:
    """Run a stage and hold it to its contract.

    Raises:
        StageError: It changed its input, its interface, or its record-keeping, or its outputs are not finite.
    """
    before = weights_sha256(model.module)
    result = call(model)
    inputs = example_inputs(model.inputs)
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


@dataclass(frozen=True, slots=True)
class _Made:
    """One target's artifacts, as the store keeps them."""

    optimized: Lowered
    original: Lowered
    variants: dict[Variant, Lowered | str]

    def moved(self, folder: Path) -> _Made:
        """The same artifacts in another folder."""

        def move(item: Lowered) -> Lowered:
            return replace(item, path=folder / item.path.name)

        variants = {name: item if isinstance(item, str) else move(item) for name, item in self.variants.items()}
        return _Made(move(self.optimized), move(self.original), variants)


_MADE = TypeAdapter(_Made)


class _NotExportedError(Exception):
    """Carries a target's skipped or failed result out of the store, which keeps finished results only."""

    def __init__(self, exported: Exported) -> None:
        self.exported = exported


def _export(target: Target, model: Model, key: str, prepared: Prepared, store: Store, out: Path) -> Exported:
    """One target's artifacts, from the store where they are there, under ``out/<target>``."""
    (config,) = (step.config for step in prepared.recipe.targets if step.name == target.name)
    export_key = key_of(
        stage="export",
        target=target.name,
        config=config.model_dump(mode="json"),
        recipe=model.recipe_sha256,
        model=key,
        code=code_sha256(Path(targets.__file__).parent / target.name),
        packages=_package_versions(),
    )

    def compute(folder: Path) -> None:
        (result,) = export(model, [target], folder)
        if result.optimized is None or result.original is None:
            raise _NotExportedError(result)
        made = _Made(result.optimized, result.original, result.variants)
        (folder / "made.json").write_bytes(_MADE.dump_json(made.moved(Path())))

    try:
        folder, _ = store.entry(export_key, compute)
    except _NotExportedError as missing:
        return missing.exported
    _replace_folder(folder / target.name, out / target.name)
    made = _MADE.validate_json((folder / "made.json").read_bytes()).moved(out / target.name)
    return Exported(
        target=target, status="ok", optimized=made.optimized, original=made.original, variants=made.variants
    )


def _replace_folder(source: Path, destination: Path) -> None:
    """Copy a folder so that it appears under its final name only when it is complete."""
    partial_copy = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial_copy, ignore_errors=True)
    shutil.copytree(source, partial_copy)
    shutil.rmtree(destination, ignore_errors=True)
    partial_copy.rename(destination)


def _budget(recipe: Recipe, original: dict[str, float], records: tuple[TargetRecord, ...]) -> BudgetRecord:
    metric = recipe.budget.metric
    baseline = original[metric] if metric == "top1" else 1.0
    met = {
        record.target: record.metrics[metric] >= baseline - recipe.budget.max_drop
        for record in records
        if record.metrics is not None
    }
    return BudgetRecord(metric=metric, max_drop=recipe.budget.max_drop, met=met)


def _environment() -> Environment:
    return Environment(
        packages=_package_versions(),
        cpu=cpu_name(),
        cpu_features=cpu_features(),
        cores=all_cores(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@contextmanager
def _announced(title: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    console.print(title)
    started = time.monotonic()
    yield
    console.print(f"  done in {time.monotonic() - started:.1f} s")
