"""Sensitivities, simulated rounding and the search against independent computations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.core import Model, TensorSpec
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.stages.quantize.choice import fewer_float_layers
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.judge import Judge, Score
from pipeline.stages.quantize.ranges.calibration import Calibration, calibrate
from pipeline.stages.quantize.scales.grids import grids_of, simulate
from pipeline.stages.quantize.sensitivity import Sensitivity, sensitivities
from pipeline.stages.quantize.simulation import convert
from pipeline.stages.quantize.trials import CalibrationConfig, better, search
from pipeline.tasks.comparison import sqnr_db
from pipeline.tasks.lookup import suggested_for
from tests.networks.architectures import ARCHITECTURES, Architecture
from tests.pipeline.stages.quantize.prepared import prepare

FRAGILE = Architecture(
    "fragile",
    lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)),
    (TensorSpec(name="x", shape=(8,)),),
)


def fragile() -> Model:
    """One outlier in every channel of layer 2 makes its scale, and so its rounding, hundreds of times coarser."""
    model = FRAGILE.model()
    with torch.no_grad():
        model.module.get_parameter("2.weight")[:, 0] = 100.0
        model.module.get_parameter("0.weight")[0] = 0.0
        for layer in ("0", "2", "4"):
            model.module.get_parameter(f"{layer}.bias").zero_()  # so that the inputs alone decide the class
    return model


def calibrated(model: Model, architecture: Architecture) -> Calibration:
    return calibrate(canonical_graph(model), architecture.samples(64), batch_size=32)


@pytest.mark.parametrize("name", ["resnet", "two_in_two_out"])
def test_simulated_rounding_is_the_program_own(name: str) -> None:
    architecture = ARCHITECTURES[name]
    found = calibrated(architecture.model(), architecture)
    (batch,) = architecture.samples(16, seed=3).batches(16)
    prepared = prepare(found, method="mse", bias_correction="none")
    simulate(prepared, grids_of(prepared))
    with torch.no_grad():
        expected = prepared(*batch.inputs)
        actual = convert(prepare(found, method="mse", bias_correction="none"))(*batch.inputs)
    for ours, theirs in zip(expected, actual, strict=True):
        assert sqnr_db(theirs, ours) > 35  # all that differs is that the program's biases are whole units


def test_one_quantized_layer_is_as_bad_as_rounding_that_weight_by_hand() -> None:
    model = fragile()
    prepared = prepare(calibrated(model, FRAGILE), method="minmax", bias_correction="none")
    samples = FRAGILE.samples(32, seed=3)
    ranking = sensitivities(
        prepared, Judge(model.module, samples, suggested_for(model.module, samples), (Budget(metric="agreement"),), 32)
    )
    assert ranking[0].layer == "2"
    assert ranking[0].without_db == max(entry.without_db for entry in ranking)

    ((x,), _) = next(samples.batches(32))
    with torch.no_grad():
        weight, bias = model.module.get_parameter("2.weight"), model.module.get_parameter("2.bias")
        steps = weight.abs().amax(1, keepdim=True) / 127
        hidden = torch.relu(model.module[0](x))  # type: ignore[index, operator]
        rounded = torch.relu(hidden @ (torch.round(weight / steps) * steps).T + bias)
        logits = model.module[4](rounded)  # type: ignore[index, operator]
        exact = model.module(x)
        by_hand = sqnr_db(exact, logits)
    agreement = (logits.argmax(1) == exact.argmax(1)).double().mean()
    assert ranking[0].alone_metric == pytest.approx(float(agreement), abs=1 / 32)
    assert ranking[0].without_metric == max(entry.without_metric for entry in ranking)
    assert ranking[0].alone_db == pytest.approx(by_hand, abs=1.0)  # the layer's result is rounded, too


def test_fragile_layer_is_left_in_float_when_the_budget_asks() -> None:
    result = quantize(
        fragile(),
        QuantizeConfig(observers=("minmax",), bias_correction=False, equalisation=False, sensitivity_samples=32),
        FRAGILE.samples(64),
        budget=Budget(metric="agreement", max_drop=0.02),
        held_out=FRAGILE.samples(256, seed=2),
    )
    (record,) = result.history
    assert [trial["float_layers"] for trial in record.details["trials"]] == [(), ("2",)]
    assert not record.details["trials"][0]["within_budget"]
    assert record.details["chosen"] == record.details["trials"][1]
    assert [(entry.layer, entry.reason) for entry in record.skipped] == [
        ("2", "left in float by the search: the accuracy budget needs it")
    ]


def scored(metric: float, sqnr_db: float, max_drop: float) -> Score:
    """Of a float network that reaches 0.9."""
    return Score(metric, (0.9 - metric) / max_drop, sqnr_db)


def outcome(results: dict[str, tuple[float, float]], *, max_drop: float, stop: bool) -> tuple[str, list[str]]:
    found = search(
        [CalibrationConfig(name) for name in results],
        build=lambda config: config.method,  # type: ignore[arg-type, return-value]  # a name stands for a program
        judge=lambda program: scored(*results[str(program)], max_drop),
        stop_when_met=stop,
    )
    return found.chosen.method, [trial.method for trial in found.trials]


def test_search_takes_the_highest_sqnr_among_those_within_the_budget() -> None:
    results = {"minmax": (0.895, 20.0), "percentile": (0.88, 40.0), "mse": (0.891, 30.0)}
    assert outcome(results, max_drop=0.01, stop=False) == ("mse", ["minmax", "percentile", "mse"])


def test_search_takes_the_highest_metric_when_none_is_within_the_budget() -> None:
    results = {"minmax": (0.80, 30.0), "percentile": (0.85, 10.0)}
    assert outcome(results, max_drop=0.01, stop=False)[0] == "percentile"


def test_search_stops_at_the_first_within_the_budget_when_asked() -> None:
    results = {"minmax": (0.80, 10.0), "percentile": (0.895, 20.0), "mse": (0.9, 50.0)}
    assert outcome(results, max_drop=0.01, stop=True) == ("percentile", ["minmax", "percentile"])


def test_better_keeps_the_trials_of_both_searches() -> None:
    def found(name: str, metric: float) -> object:
        return search(
            [CalibrationConfig(name)],
            build=lambda config: config.method,  # type: ignore[arg-type, return-value]
            judge=lambda program: scored(metric, 10.0, 1e-6),  # noqa: ARG005
            stop_when_met=False,
        )

    winner = better(found("minmax", 0.5), found("mse", 0.6))  # type: ignore[arg-type]
    assert winner.chosen.method == "mse"
    assert [trial.method for trial in winner.trials] == ["minmax", "mse"]


def test_candidates_leave_ever_more_layers_in_float_but_never_all() -> None:
    ranking = [Sensitivity(str(index), 0.0, 1.0, 0.0, 1.0) for index in range(7)]
    counts = [len(config.float_layers) for config in fewer_float_layers(CalibrationConfig(), ranking)]
    assert counts == [1, 2, 3, 4, 6]
