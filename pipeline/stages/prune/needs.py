"""What pruning needs of a run, and how it is called."""

from __future__ import annotations

from torch import nn

from pipeline.core import Model, RecipeError
from pipeline.recipe import PruneConfig
from pipeline.stages.contract import Needs, Stage, Supplies
from pipeline.stages.prune import prune
from pipeline.stages.prune.stage import refuse_programs


def needs(config: PruneConfig) -> Needs:
    """Training samples where it recovers. What it measures on, calibration or training samples, may be absent."""
    recovers = config.recover is not None
    return Needs(
        train="recover" if recovers else None,
        trains=recovers,
        measures=config.latency_target,
        one_process=RecipeError(
            "every process would prune by its own clock, and then train another network",
            where="stages: prune: latency_target",
            fix="run without a launcher, or train in a distill stage instead of recover",
        )
        if recovers and config.latency_target is not None
        else None,
    )


def apply(model: Model, config: PruneConfig, supplies: Supplies) -> Model:
    """Prune with what a run supplies; see `prune`."""
    return prune(
        model,
        config,
        supplies.calibration or supplies.train,
        train=supplies.train,
        task=supplies.task,
        target=next((target for target in supplies.targets if target.name == config.latency_target), None),
        seed=supplies.seed,
        checkpoint=supplies.checkpoint,
    )


def architecture(model: Model, _config: PruneConfig, _supplies: Supplies) -> nn.Module:
    """The model's own, if it can be pruned."""
    refuse_programs(model)
    return model.module


STAGE = Stage(needs=needs, apply=apply, architecture=architecture)
