"""Apple's compressed forms of a float model, run by the interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core import TensorSpec
from pipeline.target import Variant
from pipeline.tasks.comparison import Comparison
from targets.coreml import CoremlTarget
from targets.coreml.interpreter.package import read_package
from targets.coreml.interpreter.program import read_program
from tests.targets.coreml.programs import model_of

WIDTH = 64
X = TensorSpec(name="x", shape=(WIDTH,))
FP16 = 2 * WIDTH * WIDTH
"""Bytes of one weight in FP16."""


@pytest.mark.parametrize(
    ("variant", "operator", "weight_bytes", "floor_db"),
    [
        ("fp16", None, FP16, 60),
        ("int8_weights", "constexpr_blockwise_shift_scale", FP16 / 2, 38),
        ("palettized_6bit", "constexpr_lut_to_dense", FP16 * 6 / 16, 26),
        ("palettized_4bit", "constexpr_lut_to_dense", FP16 * 4 / 16, 16),
    ],
)
def test_variant_is_smaller_and_follows_the_original(
    variant: Variant, operator: str | None, weight_bytes: float, floor_db: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    target = CoremlTarget()
    lowered = target.lower(model_of(network, X), tmp_path, name="model", variant=variant)
    assert lowered.variant == variant
    found = read_program(read_package(lowered.path)).count_operators()
    assert {name for name in found if name.startswith("constexpr_")} == ({operator} if operator else set())
    weights = lowered.path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    assert 2 * weight_bytes <= weights.stat().st_size <= 2 * weight_bytes + 2048
    samples = torch.randn(64, WIDTH)
    (outputs,) = target.load(lowered, threads=1).run((samples.numpy(),))
    compared = Comparison(class_axis=1)
    compared.update((torch.from_numpy(np.asarray(outputs)),), (network(samples).detach(),))
    assert compared.sqnr_db > floor_db
