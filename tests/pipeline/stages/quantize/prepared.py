"""Prepared graphs for tests: configured as a trial configures them, but not rounding."""

from __future__ import annotations

from torch.fx import GraphModule

from pipeline.stages.quantize.graph.scheme import scheme_of
from pipeline.stages.quantize.improve.correction import BiasCorrection
from pipeline.stages.quantize.ranges.calibration import Calibration
from pipeline.stages.quantize.scales.grids import simulate
from pipeline.stages.quantize.simulation import Simulation


def prepare(
    calibration: Calibration, *, method: str, bias_correction: BiasCorrection, skip: tuple[str, ...] = ()
) -> GraphModule:
    """A copy of the calibrated graph with a grid wherever a tensor becomes integers."""
    scheme = scheme_of(calibration.graph, skip)
    prepared = Simulation(calibration, scheme).configure(method, bias_correction)
    simulate(prepared, set())
    return prepared
