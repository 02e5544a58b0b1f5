"""What quantization needs of a run, and how it is called."""

from __future__ import annotations

from pipeline.core import Model, RecipeError
from pipeline.recipe import QuantizeConfig
from pipeline.stages.contract import Needs, Stage, Supplies
from pipeline.stages.quantize import quantize


def needs(config: QuantizeConfig) -> Needs:
    """Calibration samples, targets that hold int8 weights and, for ``qat``, training samples in one process."""
    trains = config.qat is not None
    refusal = RecipeError("qat trains in one process", where="stages: quantize: qat", fix="run without a launcher")
    return Needs(
        train="qat" if trains else None,
        calibration="stage 'quantize'",
        target_dtype="int8",
        trains=trains,
        logs=trains,
        one_process=refusal if trains else None,
    )


def apply(model: Model, config: QuantizeConfig, supplies: Supplies) -> Model:
    """Quantize with what a run supplies; see `quantize`."""
    assert supplies.calibration is not None  # it is declared as a need, and checked
    return quantize(
        model,
        config,
        supplies.calibration,
        budget=supplies.budget,
        task=supplies.task,
        held_out=supplies.held_out,
        train=supplies.train,
        seed=supplies.seed,
        checkpoint=supplies.checkpoint,
        log=supplies.log,
    )


STAGE = Stage(needs=needs, apply=apply)
