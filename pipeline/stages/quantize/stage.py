"""The quantize stage: from a float module to one quantized program that every target lowers."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from pipeline.core import Model, SkippedLayer, StageError, StageRecord
from pipeline.data.samples import SampleSet, with_examples
from pipeline.machine.memory import require_memory
from pipeline.models.capture import count_macs, count_parameters
from pipeline.models.function import require_function
from pipeline.models.layers import is_within, layers_of, matching_in
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import qat
from pipeline.stages.quantize.choice import Choice, choose
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.graph.cost import integer_share
from pipeline.stages.quantize.graph.nodes import layer_name
from pipeline.stages.quantize.improve.batch_norms import reestimated
from pipeline.stages.quantize.judge import Judge, Score
from pipeline.stages.quantize.ranges.calibration import calibrate, fitting_batch
from pipeline.stages.quantize.simulation import Simulations
from pipeline.stages.quantize.simulation import convert as to_program
from pipeline.tasks.lookup import for_task, task_of
from pipeline.tasks.task import Task
from pipeline.training.loop import EpochLog

_SHOWN = 5
"""Names, at most, in a message."""

COPIES = 9
"""How often candidates, the program and its capture hold the FP32 weights; 8.5 on 146 MB of linear layers."""


def quantize(
    model: Model,
    config: QuantizeConfig,
    data: SampleSet,
    *,
    budget: Budget | tuple[Budget, ...],
    task: Task | None = None,
    held_out: SampleSet | None = None,
    train: SampleSet | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    log: Path | None = None,
) -> Model:
    """Quantize a float module to static int8, calibrated on real samples.

    Args:
        data: Calibration samples; labels are not needed.
        budget: How much worse than the float module each metric may get on the held-out samples.
        task: What the model is for; suggested by the model and the labels of ``held_out`` when absent.
        held_out: Samples that decide between configurations; a quarter of ``data`` when absent.
        train: Samples for quantization-aware training; only ``qat`` needs them.
        seed: Determines that quarter, and the order of the training samples.
        checkpoint, log: See `qat.train`.

    Raises:
        DataError: A sample holds NaN or infinity.
        StageError: The module is no function of its samples, cannot be captured, or ``qat`` has nothing to train on;
            or ``layers`` or ``skip`` names no layer of it.
    """
    _require_training(config, train)
    chosen = _choose(model, config, data, budget, task, held_out, seed)
    judge, prepared, details = chosen.judge, chosen.choice.prepared, chosen.details

    # Convert: turn the chosen simulation into a program of quantize and dequantize operators.
    result = _converted(prepared, judge)

    # Train, if the recipe asks for it: adapt the weights to their grids.
    if config.qat is not None and train is not None:
        samples, teacher = for_task(train, chosen.task), model.reference
        learn = partial(qat.train, prepared, teacher, samples, chosen.task, config.qat, seed=seed)
        epochs = learn(validate=judge.metric_of, higher_is_better=judge.rises, checkpoint=checkpoint, log=log)
        result, details["qat"] = _better(result, _converted(prepared, judge), epochs, len(train))

    return chosen.model.after(result.program, _record(chosen, result), quantized=True)


class QatModule(qat.Trainable):
    """A network that is trained while it is rounded, in a loop of the caller's; see `prepare_qat`."""

    def __init__(self, chosen: _Chosen) -> None:
        super().__init__(chosen.choice.prepared)
        self._chosen = chosen
        self._before = _converted(chosen.choice.prepared, chosen.judge).score

    def converted(self) -> Model:
        """The model of the program as trained so far; see `convert`."""
        chosen = self._chosen
        result = _converted(self.finished(), chosen.judge)
        trained = {"loop": "the caller's", "post_training": self._before.metric, "metric": result.score.metric}
        trained |= {"sqnr_db": result.score.sqnr_db, "kept": True}
        record = _record(chosen, result)
        record = record.model_copy(update={"details": record.details | {"qat": trained}})
        return chosen.model.after(result.program, record, quantized=True)


def prepare_qat(
    model: Model,
    config: QuantizeConfig,
    data: SampleSet,
    *,
    budget: Budget | tuple[Budget, ...],
    task: Task | None = None,
    held_out: SampleSet | None = None,
    seed: int = 0,
) -> QatModule:
    """The best post-training quantization as a module that a loop of the caller's can train.

    Args:
        data, budget, task, held_out, seed: As for `quantize`.

    Raises:
        DataError: A sample holds NaN or infinity.
        StageError: See `quantize`; or the module's own code fixes its batch size, or ``config`` asks for training too.
    """
    if config.qat is not None:
        raise StageError("qat would train in a loop of its own", where="prepare_qat: config", fix="remove qat from it")
    return QatModule(_choose(model, config, data, budget, task, held_out, seed))


def convert(prepared: QatModule) -> Model:
    """The quantized model of a module from `prepare_qat`, as trained so far; the module stays as it is."""
    return prepared.converted()


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What a network will be quantized with, and how that was found.

    Attributes:
        absorbed: Layers that were named to stay in float, and have no operators of their own.
        details: Of the record, as far as they are known.
        started: When, by ``time.perf_counter``.
    """

    model: Model
    config: QuantizeConfig
    task: Task
    judge: Judge
    simulations: Simulations
    choice: Choice
    absorbed: tuple[SkippedLayer, ...]
    details: dict[str, Any]
    started: float

    def __deepcopy__(self, memo: dict[int, Any]) -> _Chosen:
        """Itself: a module that is copied while it trains keeps one origin."""
        return self


def _choose(
    model: Model,
    config: QuantizeConfig,
    data: SampleSet,
    budget: Budget | tuple[Budget, ...],
    task: Task | None,
    held_out: SampleSet | None,
    seed: int,
) -> _Chosen:
    """Prepare, calibrate and choose; see `quantize`."""
    started, details = time.perf_counter(), dict[str, Any]()
    model, (data, held_out) = _on_samples(model, data), _divided(data, held_out, seed)
    task = task_of(model, held_out, task)
    held_out, budgets = for_task(held_out, task), budget if isinstance(budget, tuple) else (budget,)

    # Prepare: rewrite the network in operators that have integer kernels.
    module = model.module
    if config.batch_norm:
        module, details["batch_norm"] = _with_settled_batch_norms(model, config, data, held_out, task, budgets)
    graph = canonical_graph(replace(model, module=module))
    in_float, absorbed = _float_layers(model, config, graph)

    # Calibrate: one pass over the samples collects what every range method reads.
    calibration = calibrate(graph, data, batch_size=config.batch_size, methods=config.observers)
    details |= {"calibration_samples": len(data), "calibration_s": time.perf_counter() - started}

    # Choose: simulate the rounding of each candidate, and compare them on the held-out samples.
    judge = Judge(module, held_out, task, budgets, fitting_batch(graph, config.batch_size))
    simulations = Simulations(calibration, in_float)
    choice = choose(simulations, judge, config, data)
    return _Chosen(model, config, task, judge, simulations, choice, absorbed, details, started)


def _require_memory(model: Model) -> None:
    """Refuse a model whose simulations would not fit, before the system ends the process."""
    weights: int = sum(value.nbytes for value in model.module.state_dict().values())
    require_memory("quantize: the weights of all candidates", COPIES * weights, fix="use a machine with more memory")


def _require_training(config: QuantizeConfig, train: SampleSet | None) -> None:
    if config.qat is not None and train is None:
        raise StageError("qat needs training samples", where="quantize: qat", fix="add data.train, or remove qat")


_ABSORBED = (
    "named by the recipe; the deployed network computes it inside other layers, and it is in float where they are"
)


def _float_layers(
    model: Model, config: QuantizeConfig, graph: GraphModule
) -> tuple[tuple[str, ...], tuple[SkippedLayer, ...]]:
    """The names of the modules that the configuration leaves in float, and those without operators of their own.

    Raises:
        StageError: A name or a pattern stands for no layer, or all of them only for such without operators.
    """
    modules = (model.reference, model.module)
    asked = {"skip": config.skip, "layers": tuple(config.layers)}
    found = {key: matching_in(modules, patterns, where=f"quantize: {key}") for key, patterns in asked.items()}
    groups = [names for patterns in found.values() for names in patterns.values()]
    if not groups:
        return (), ()
    operators = {layer_name(node) for node in graph.graph.nodes if node.op == "call_function"}
    present = layers_of(model.module)
    inside = [names for names in groups if not any(is_within(layer, names) for layer in operators)]
    absorbed = tuple(dict.fromkeys(name for names in inside for name in names if name in present))
    if absorbed and len(inside) == len(groups):
        key, patterns = next((key, patterns) for key, patterns in found.items() if patterns)
        raise StageError(
            f"{next(iter(patterns))!r} stands for {', '.join(absorbed[:_SHOWN])}, which the deployed network computes "
            "inside other layers",
            where=f"quantize: {key}",
            fix="name the layer that computes it: that in front of a batch norm, or the one that it is part of",
        )
    names = tuple(dict.fromkeys(name for each in groups for name in each))
    return names, tuple(SkippedLayer(layer=name, reason=_ABSORBED) for name in absorbed)


def _divided(data: SampleSet, held_out: SampleSet | None, seed: int) -> tuple[SampleSet, SampleSet]:
    """Samples to calibrate on and to choose by: a quarter is held out where no others are given."""
    if held_out is not None:
        return data, held_out
    return data.split(max(1, len(data) // 4), seed) if len(data) > 1 else (data, data)


def _on_samples(model: Model, data: SampleSet) -> Model:
    """The model with a few samples to be tried on, once it has turned out to be a function of each of them."""
    model = with_examples(model, data)
    require_function(model.module, model.examples)
    _require_memory(model)
    return model


@dataclass(frozen=True, slots=True)
class _Judged:
    """A quantized program, and what it reached on the held-out samples."""

    program: GraphModule
    score: Score


def _converted(prepared: GraphModule, judge: Judge) -> _Judged:
    program = to_program(copy.deepcopy(prepared))
    return _Judged(program, judge(program))


def _better(before: _Judged, after: _Judged, epochs: list[EpochLog], samples: int) -> tuple[_Judged, dict[str, Any]]:
    """The program after training unless it is worse than before, and the training's part of the record."""
    kept = after.score.budget_used <= before.score.budget_used
    record = {
        "samples": samples,
        "epochs": [asdict(epoch) for epoch in epochs],
        "post_training": before.score.metric,
        "metric": after.score.metric,
        "sqnr_db": after.score.sqnr_db,
        "kept": kept,
    }
    return after if kept else before, record


def _with_settled_batch_norms(
    model: Model,
    config: QuantizeConfig,
    data: SampleSet,
    held_out: SampleSet,
    task: Task,
    budgets: tuple[Budget, ...],
) -> tuple[nn.Module, dict[str, Any]]:
    """The module, with re-estimated batch-norm statistics if it then follows the original better."""
    follows = Judge(model.reference, held_out, task, budgets, config.batch_size)
    settled = reestimated(model.module, data, batch_size=config.batch_size)
    before, after = follows(model.module), follows(settled)
    better = (after.budget_used, -after.sqnr_db) < (before.budget_used, -before.sqnr_db)
    record = {"before": before.metric, "after": after.metric, "kept": better}
    return settled if better else model.module, record


def _record(chosen: _Chosen, result: _Judged) -> StageRecord:
    """The stage's record: what was done, tried and reached."""
    model, choice, judge = chosen.model, chosen.choice, chosen.judge
    float_layers = choice.found.config.float_layers
    scheme = chosen.simulations.scheme(float_layers)
    return StageRecord(
        stage="quantize",
        config=chosen.config.model_dump(mode="json"),
        duration_s=time.perf_counter() - chosen.started,
        parameters=count_parameters(result.program),
        macs=count_macs(model.module, model.examples),
        skipped=explained(scheme.skipped, float_layers) + chosen.absorbed,
        details={
            "int8_macs_ratio": integer_share(result.program, model.examples),
            "parameter_sets": len(set(scheme.roots.values())),
            "held_out": {
                "samples": len(judge.samples),
                "metric": judge.spec.name,
                "float": judge.baseline,
                "int8": result.score.metric,
                "sqnr_db": result.score.sqnr_db,
                "outputs_db": dict(zip(model.outputs, result.score.outputs_db, strict=False)),
            },
            "batch_norm": None,
            "trials": [asdict(trial) for trial in choice.found.trials],
            "chosen": asdict(choice.found.chosen),
            "qat": None,
            "sensitivities": [asdict(entry) for entry in choice.ranking],
            **chosen.details,
        },
    )


def explained(skipped: tuple[SkippedLayer, ...], float_layers: tuple[str, ...]) -> tuple[SkippedLayer, ...]:
    """The skipped layers; those that the search left in float say so."""
    reason = "left in float by the search: the accuracy budget needs it"
    return tuple(
        SkippedLayer(layer=entry.layer, reason=reason) if entry.layer in float_layers else entry for entry in skipped
    )
