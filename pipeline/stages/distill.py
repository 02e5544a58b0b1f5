"""Distillation: the original teaches a smaller student (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

The student keeps the weights of the *last* epoch: the one-cycle schedule ends at a rate near zero, where the last
epoch is also the best up to noise, and choosing among epochs by a held-out metric would only select that noise.
The record has the metric of every epoch, so a reader can check this. Where ``early_stop`` is set, the epoch
with the best held-out metric is kept instead.
"""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pipeline.core import Model, StageError, StageRecord
from pipeline.core.outputs import output_tuple
from pipeline.data.samples import SampleSet, with_examples
from pipeline.models.capture import count_macs, count_parameters, example_inputs
from pipeline.models.checkpoints.state_dict import build
from pipeline.models.interface import in_normal_form
from pipeline.models.modules import plain
from pipeline.recipe import DistillConfig
from pipeline.stages.contract import Needs, Stage, Supplies
from pipeline.tasks.lookup import for_task, measurable, task_of
from pipeline.tasks.task import Task
from pipeline.training.features import FeatureLoss
from pipeline.training.loop import EpochLog, StepLoss, best_epoch, fit
from pipeline.training.losses import distillation_loss
from pipeline.training.validation import higher_is_better, validation

logger = logging.getLogger(__name__)


def distill(
    model: Model,
    config: DistillConfig,
    data: SampleSet,
    *,
    task: Task | None = None,
    held_out: SampleSet | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    log: Path | None = None,
    root: Path = Path(),
) -> Model:
    """Train a student to answer as the original does, and as the labels say where there are any.

    The student is the current model or, where ``config.student`` names one, another network in its place.

    Args:
        data: What to train on.
        task: What the model is for; suggested by the model and the labels when absent.
        held_out: Other samples of the training data, on which each epoch is scored by the task's first metric.
        checkpoint: Where the training's state is kept, so that a killed one goes on; removed at the end.
        log: CSV file of every step's and epoch's loss.
        root: What relative paths of ``config.student`` start from.

    Raises:
        CheckpointError: The student's network or weights cannot be loaded.
        StageError: The model is a program, which cannot be trained, or the loss diverges, or ``early_stop`` has
            nothing to choose by, or the student cannot take the model's place.
    """
    if config.early_stop is not None and held_out is None:
        raise StageError("early_stop needs held-out samples", where="distill", fix="remove it, or add training data")
    started = time.monotonic()
    _refuse_programs(model)
    model = with_examples(model, data)
    task = task_of(model, data, task)
    data, held_out = for_task(data, task), None if held_out is None else for_task(held_out, task)
    scored = task if held_out is None else measurable(task, model.reference, held_out)
    student = first_student(model, config, seed=seed, root=root).requires_grad_(True)
    teacher = copy.deepcopy(model.reference).requires_grad_(False).eval()
    for module in (student, teacher):
        _to_channels_last(module)
    loss = _loss(student, teacher, task, config, example_inputs(model.examples, 2), seed)
    logs = fit(
        student,
        loss,
        data,
        config,
        seed=seed,
        validate=None if held_out is None else validation(scored, teacher, held_out),
        higher_is_better=higher_is_better(scored, held_out),
        label="distill",
        checkpoint=checkpoint,
        log=log,
    )
    student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs leave it out
    details = _details(scored, config, data, held_out, logs, loss)
    return model.after(student, _record(model, student, config, details, time.monotonic() - started))


def _details(
    scored: Task,
    config: DistillConfig,
    data: SampleSet,
    held_out: SampleSet | None,
    logs: list[EpochLog],
    loss: StepLoss,
) -> dict[str, Any]:
    """What the record says of the training, whose epochs were scored by this task's first metric."""
    usable = () if held_out is None else scored.usable(labelled=held_out.labelled)
    return {
        "samples": len(data),
        "held_out": 0 if held_out is None else len(held_out),
        "epochs": [{"epoch": epoch.epoch, "loss": epoch.loss, "metric": epoch.metric} for epoch in logs],
        "metric": next((spec.name for spec in usable), None),
        "kept_epoch": logs[-1].epoch
        if config.early_stop is None
        else best_epoch(logs, higher_is_better(scored, held_out)),
        "feature_layers": loss.layers if isinstance(loss, FeatureLoss) else {},
    }


def _loss(
    student: nn.Module, teacher: nn.Module, task: Task, config: DistillConfig, inputs: tuple[Tensor, ...], seed: int
) -> StepLoss:
    """The loss on the answers and, where features are asked for, on what layers put out as well."""
    loss = distillation_loss(
        teacher, task, temperature=config.temperature, alpha=config.alpha, relations=config.relations
    )
    if config.features is None:
        return loss
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FeatureLoss(loss, student, teacher, config.features, inputs)


def _record(
    model: Model, student: nn.Module, config: DistillConfig, details: dict[str, Any], duration_s: float
) -> StageRecord:
    features = details["feature_layers"] or "no layer"
    logger.debug("kept epoch %d, with a loss on the features of %s", details["kept_epoch"], features)
    return StageRecord(
        stage="distill",
        config=config.model_dump(mode="json"),
        duration_s=duration_s,
        parameters=count_parameters(student),
        macs=count_macs(student, model.examples or model.inputs),
        details=details,
    )


def first_student(model: Model, config: DistillConfig, *, seed: int = 0, root: Path = Path()) -> nn.Module:
    """The student as it is before training: a copy of the current model, or the network that the recipe names.

    Raises:
        CheckpointError: The network cannot be built, or its weights cannot be loaded.
        StageError: It does not take the model's inputs, or returns other outputs.
    """
    source = config.student
    if source is None:
        return copy.deepcopy(model.module)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = None if source.checkpoint is None else root / source.checkpoint
        student, _ = build(source.factory, source.kwargs, weights, root=root, field="distill.student.kwargs")
    inputs = example_inputs(model.examples or model.inputs, 2)
    expected = _shapes(model.reference, inputs)
    try:
        student, _ = plain(student, where=source.factory)
        student, *_ = in_normal_form(student, model.inputs, where=source.factory, examples=model.examples)
        found = _shapes(student, inputs)
    except Exception as error:  # a user's forward may raise anything
        raise StageError(
            f"the student fails on the model's inputs: {str(error).strip().partition(chr(10))[0]}",
            where=f"distill.student: {source.factory}",
            fix="give a network that takes the same inputs",
        ) from error
    if found != expected:
        raise StageError(
            f"the student returns {found}, the original {expected} (with 2 samples)",
            where=f"distill.student: {source.factory}",
            fix="correct its kwargs, such as the number of classes",
        )
    return student


def _shapes(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[list[int]]:
    with torch.no_grad():
        outputs = module(*inputs)
    return [list(output.shape) for output in output_tuple(outputs)]


def _to_channels_last(module: nn.Module) -> None:
    """Let 2-D convolutions work in the layout in which they train about 1.5 times faster on a CPU."""
    if all(parameter.ndim <= 4 for parameter in module.parameters()):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs leave it out


def _refuse_programs(model: Model) -> None:
    for module in (model.module, model.reference):
        if isinstance(module, GraphModule):
            raise StageError(
                "a torch.export program (.pt2) cannot be trained: its graph is in inference mode for good",
                where="distill",
                fix="give the model as factory and weights, or leave distill out",
            )


def _needs(_config: DistillConfig) -> Needs:
    return Needs(train="stage 'distill'", trains=True, logs=True)


def _apply(model: Model, config: DistillConfig, supplies: Supplies) -> Model:
    assert supplies.train is not None  # it is declared as a need, and checked
    return distill(
        model,
        config,
        supplies.train,
        task=supplies.task,
        held_out=supplies.held_out,
        seed=supplies.seed,
        checkpoint=supplies.checkpoint,
        log=supplies.log,
        root=supplies.root,
    )


def _architecture(model: Model, config: DistillConfig, supplies: Supplies) -> nn.Module:
    """The new student's where there is one, and the model's own otherwise; its features have to fit the teacher's."""
    _refuse_programs(model)
    if config.student is None and config.features is None:
        return model.module
    student = first_student(model, config, seed=supplies.seed, root=supplies.root)
    _loss(
        student,
        model.reference,
        supplies.task,
        config,
        example_inputs(model.examples or model.inputs, 2),
        supplies.seed,
    )
    return student if config.student is not None else model.module


STAGE = Stage(needs=_needs, apply=_apply, architecture=_architecture)
