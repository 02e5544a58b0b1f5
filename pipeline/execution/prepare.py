"""Preparation: everything that a recipe names is opened and checked before anything is computed or written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

import targets
from pipeline.core import DataError, Model, RecipeError
from pipeline.data.archive import stored_bytes
from pipeline.data.open import open_samples
from pipeline.data.samples import SampleSet, examples_of
from pipeline.data.source import DataSource
from pipeline.data.steps import as_sequences
from pipeline.data.synthetic import COUNT, SyntheticSource, synthetic_samples
from pipeline.execution.baseline import check_baseline
from pipeline.execution.complete import completed, with_task
from pipeline.execution.options import (
    check_augmentations,
    check_options,
    check_skipped,
    dynamic_axes,
)
from pipeline.execution.plausible import ONE_IN, doubtful_values, too_few
from pipeline.execution.processes import processes
from pipeline.execution.sequences import first_steps, of_whole_sequences, steps_of, with_steps
from pipeline.execution.sizes import sized, with_open_axes
from pipeline.execution.stages import STAGES
from pipeline.execution.task import require_all_classes, settle_budgets, settle_task
from pipeline.machine.memory import require_memory
from pipeline.models.checkpoints.huggingface import tokenizer_of
from pipeline.models.function import require_function
from pipeline.models.interface import checked_model
from pipeline.models.load import Opened, open_module
from pipeline.recipe import Budget, Recipe
from pipeline.stages.contract import Needs, Supplies
from pipeline.target import Target
from pipeline.tasks.loop import Loop, without_states
from pipeline.tasks.task import Task

HELD_OUT = 2_000
"""Samples that stages choose by, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A recipe with all its parts opened and checked.

    Attributes:
        warnings: What makes the run's figures doubtful, in sentences.
    """

    recipe: Recipe
    model: Model
    task: Task
    budgets: tuple[Budget, ...]
    targets: tuple[Target, ...]
    evaluation: SampleSet
    train: SampleSet | None
    calibration: SampleSet | None
    held_out: SampleSet | None
    root: Path
    warnings: tuple[str, ...] = ()

    def supplies(self, *, checkpoint: Path | None = None, log: Path | None = None) -> Supplies:
        """What the run has to give a stage. The evaluation samples are not part of it."""
        return Supplies(
            train=self.train,
            calibration=self.calibration,
            held_out=self.held_out,
            targets=self.targets,
            task=self.task,
            budget=self.budgets,
            seed=self.recipe.seed,
            root=self.root,
            checkpoint=checkpoint,
            log=log,
        )


def check(recipe: Recipe, root: Path = Path()) -> Prepared:
    """Open everything a recipe names and refuse what cannot work, before anything is computed or written.

    Raises:
        EdgewrightError: Names the file, the field and the fix.
    """
    opened = open_module(recipe.model, root)
    recipe = completed(recipe, opened.described)
    opened = sized(opened, recipe, root)
    needs = [STAGES[step.name].needs(step.config) for step in recipe.stages]
    _check_needs(recipe, needs)
    sets = _open_sets(recipe, opened, root)
    recipe = with_task(recipe, opened.described, labelled=sets["evaluation"].labelled)
    model = _model(recipe, opened, sets)
    require_function(model.module, model.examples)
    sets |= _made(recipe, model)
    whole = of_whole_sequences(model, _tried_on(sets))
    task, sets = settle_task(recipe, whole, sets, root)
    check_augmentations(recipe, sets.get("train"))
    budgets = settle_budgets(recipe.budget, task, sets["evaluation"])
    for samples in sets.values():
        _ = samples.sha256  # reads every sample, so that a bad one is found now and not after an hour of training
    require_all_classes(recipe, task, sets)
    _require_one_rate(sets)
    found = tuple(targets.get(step.name, step.config) for step in recipe.targets)
    _check_targets(found, needs)
    check_options(recipe, model)
    model = with_open_axes(model)
    chosen = _hold_out(sets.get("train"), sets.get("calibration"), recipe.seed)
    train, calibration, held_out = (steps_of(model, samples) for samples in chosen)
    prepared = Prepared(
        recipe=recipe,
        model=replace(model, dynamic={**model.dynamic, **dynamic_axes(recipe)}),
        task=task,
        budgets=budgets,
        targets=found,
        evaluation=sets["evaluation"],
        train=train,
        calibration=calibration,
        held_out=held_out,
        root=root,
    )
    _check_architectures(prepared)
    own_metrics = recipe.task is not None and bool(recipe.task.metrics)
    doubts = tuple(doubtful_values(sets))
    chance = check_baseline(
        recipe.model.expect, whole.module, task, sets["evaluation"], own_metrics=own_metrics, doubts=doubts
    )
    made = [samples.source.warning for samples in sets.values() if isinstance(samples.source, SyntheticSource)]
    few = too_few(task, budgets, evaluation=sets["evaluation"], held_out=held_out if recipe.stages else None)
    return replace(prepared, warnings=(*made, *doubts, *filter(None, [chance]), *few))


def _check_architectures(prepared: Prepared) -> None:
    """Build what each stage returns, and look for the layers that its configuration names."""
    module = prepared.model.module
    for index, step in enumerate(prepared.recipe.stages):
        check_skipped(step, module, index)
        module = STAGES[step.name].architecture(prepared.model, step.config, prepared.supplies())


def _check_needs(recipe: Recipe, needs: list[Needs]) -> None:
    for need in needs:
        for role, needed_by in (("train", need.train), ("calibration", need.calibration)):
            if needed_by is not None and getattr(recipe.data, role) is None:
                raise RecipeError(
                    f"{needed_by} needs samples",
                    where=f"data.{role}",
                    fix=f"add data.{role}: {{npz: …}}, or remove {needed_by}",
                )
        if need.one_process is not None and processes().num_processes > 1:
            raise need.one_process


def _model(recipe: Recipe, opened: Opened, sets: dict[str, SampleSet]) -> Model:
    """The model, tried on samples that no result is reported on, where there are any."""
    samples, states = _tried_on(sets), recipe.model.states
    model = checked_model(
        opened.module,
        opened.inputs,
        recipe.model.outputs,
        recipe.model.classes,
        where=opened.where,
        examples=first_steps(Loop(opened.inputs, (), states), samples) if states else samples,
        notes=opened.notes,
    )
    if states:
        model = with_steps(replace(model, states=tuple(states.items())), samples)
    return replace(
        model,
        preprocessing=recipe.data.preprocessing,
        recipe_sha256=hashlib.sha256(recipe.model_dump_json().encode()).hexdigest(),
    )


def _tried_on(sets: dict[str, SampleSet]) -> tuple[Tensor, ...]:
    """A few samples that no result is reported on, where there are any."""
    return examples_of(sets.get("calibration") or sets.get("train") or sets["evaluation"])


def _open_sets(recipe: Recipe, model: Opened, root: Path) -> dict[str, SampleSet]:
    """Open all sets. Where the recipe does not name the classes, the training set does, else the evaluation set."""
    opened: dict[str, SampleSet] = {}
    classes, preprocessing = recipe.model.classes, recipe.data.preprocessing
    specs = without_states(model.inputs, recipe.model.states)
    tokenize = None if model.described is None else tokenizer_of(model.described)
    for role in ("train", "evaluation", "calibration"):
        source: DataSource | None = getattr(recipe.data, role)
        if source is None or source.synthetic:
            continue
        _require_memory(source, role, root)
        samples = open_samples(source, specs, preprocessing, name=role, root=root, classes=classes, tokenize=tokenize)
        opened[role] = as_sequences(samples) if recipe.model.states else samples
        if opened[role].labelled:
            classes = classes or opened[role].source.classes
    return opened


def _require_one_rate(sets: dict[str, SampleSet]) -> None:
    """Refuse recordings of another sampling rate than in another set."""
    heard = [samples.source for samples in sets.values() if samples.source.sampling_rate is not None]
    for source in heard[1:]:
        if source.sampling_rate != heard[0].sampling_rate:
            problem = f"is sampled at {source.sampling_rate} Hz, and {heard[0].where} at {heard[0].sampling_rate} Hz"
            fix = "resample one of them, and say which rate is right: data.preprocessing.sampling_rate"
            raise DataError(problem, where=source.where, fix=fix)


def _made(recipe: Recipe, model: Model) -> dict[str, SampleSet]:
    """The calibration set, where it is synthetic."""
    source = recipe.data.calibration
    if source is None or not source.synthetic:
        return {}
    if recipe.model.states:
        problem = "cannot be made for a model that keeps states: only real sequences say what they are"
        raise DataError(problem, where="data.calibration: synthetic", fix="give real samples")
    preprocessing = source.preprocessing or recipe.data.preprocessing
    count = source.limit or COUNT
    return {"calibration": synthetic_samples(model.module, model.inputs, preprocessing, count=count, seed=recipe.seed)}


def _require_memory(source: DataSource, role: str, root: Path) -> None:
    """Refuse an npz that unpacks to more than there is memory."""
    if source.npz is not None:
        path, labels = root / source.npz, source.labels or ""
        arrays = [labels] if isinstance(labels, str) else list(labels.values())
        needed = stored_bytes(path, [*source.inputs, *arrays])
        fix = "read its samples one by one: give a factory, or a folder of images"
        require_memory(f"data.{role}: reading {path}", needed, fix=fix)


def _check_targets(found: tuple[Target, ...], needs: list[Needs]) -> None:
    for dtype in dict.fromkeys(need.target_dtype for need in needs if need.target_dtype is not None):
        for target in found:
            if dtype not in target.capabilities.weight_dtypes:
                raise RecipeError(
                    f"cannot hold {dtype} weights", where=f"targets.{target.name}", fix="remove the target"
                )


def _hold_out(
    train: SampleSet | None, calibration: SampleSet | None, seed: int
) -> tuple[SampleSet | None, SampleSet | None, SampleSet | None]:
    """Training, calibration and held-out samples: what stages choose by is neither fitted nor reported on."""
    source = train or calibration
    if source is None:
        return None, None, None
    if len(source) < 2:
        raise DataError(
            "holds a single sample, and some are held out to choose by", where=source.source.where, fix="add samples"
        )
    kept, held_out = source.split(min(HELD_OUT, max(1, len(source) // ONE_IN)), seed)
    if train is None:
        return None, kept, held_out
    if calibration is not None and calibration.source.where == train.source.where:
        used = set(held_out.indices)
        calibration = replace(calibration, indices=tuple(i for i in calibration.indices if i not in used))
    return kept, calibration, held_out
