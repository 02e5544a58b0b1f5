"""Operator work equals what can be counted by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from torch import Tensor, nn

from pipeline.core import TensorSpec
from pipeline.recipe import CoremlConfig
from targets.coreml import CoremlTarget
from targets.coreml.interpreter.package import read_package
from targets.coreml.interpreter.program import Program, read_program
from targets.coreml.neural_engine.networks import (
    NETWORKS,
    Published,
    measure,
    read_operators,
    stack,
    write_operators,
)
from targets.coreml.neural_engine.work import Work, works
from tests.targets.coreml.programs import HandQuantized, model_of

ARGUMENTS = 2 + 4 + 2 + 1 + 1  # a convolution's strides, padding, dilations, groups, and kind of padding


class Attention(nn.Module):
    """A depthwise convolution, then scores between its places."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.depthwise(image).flatten(2)
        return tokens @ tokens.transpose(1, 2)


def program_of(module: nn.Module, spec: TensorSpec, folder: Path, *batch_sizes: int) -> Program:
    model = model_of(module, spec)
    target = CoremlTarget(CoremlConfig(batch_sizes=batch_sizes or (1,)))
    return read_program(read_package(target.lower(model, folder, name="net").path))


def of_kind(found: Counter[Work], kind: str) -> list[Work]:
    return [work for work in found.elements() if work.kind == kind]


def test_works_count_macs_of_depthwise_and_matmul_when_shapes_are_fixed(tmp_path: Path) -> None:
    found = works(program_of(Attention(), TensorSpec(name="image", shape=(6, 4, 5)), tmp_path))

    (depthwise,) = of_kind(found, "depthwise")
    assert depthwise.macs == 6 * 4 * 5 * 9
    assert depthwise.weights == 6 * 9 + 6 + ARGUMENTS
    assert depthwise.activations == 2 * 6 * 4 * 5
    (scores,) = of_kind(found, "matmul")
    assert scores.macs == 6 * 6 * (4 * 5)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_works_scale_with_the_batch_when_its_size_is_open(tmp_path: Path, batch_size: int) -> None:
    program = program_of(Attention(), TensorSpec(name="image", shape=(6, 4, 5)), tmp_path, 1, 8)

    found = works(program, batch_size)

    assert of_kind(found, "depthwise")[0].macs == batch_size * 6 * 4 * 5 * 9
    assert of_kind(found, "depthwise")[0].weights == 6 * 9 + 6 + ARGUMENTS
    assert of_kind(found, "matmul")[0].macs == batch_size * 6 * 6 * (4 * 5)


def test_works_are_stored_in_bytes_when_operands_are_quantized(tmp_path: Path) -> None:
    model = model_of(HandQuantized(), quantized=True)
    lowered = CoremlTarget(CoremlConfig(batch_sizes=(1,))).lower(model, tmp_path, name="net")

    found = works(read_program(read_package(lowered.path)))

    (conv,) = of_kind(found, "conv")
    assert (conv.macs, conv.weight_bits, conv.activation_bits) == (8 * 26 * 26 * 9, 8, 8)
    (linear,) = of_kind(found, "linear")
    assert (linear.macs, linear.weight_bits, linear.activation_bits) == (10 * 8, 8, 8)


def test_measure_counts_every_convolution_when_a_network_is_rebuilt() -> None:
    found = measure(Published(stack(2), 4, 512))

    assert sum(work.macs * count for work, count in found.items()) == 2 * 512 * 512 * 16
    assert sum(work.weights * count for work, count in found.items()) == 2 * (512 * 512 + 512 + ARGUMENTS)


def test_written_operators_are_read_back_when_rows_repeat(tmp_path: Path) -> None:
    found = {"net": Counter({Work("conv", 10, 2, 3): 4, Work("linear", 7, 1, 1, 8, 8): 1})}

    write_operators(found, tmp_path / "operators.csv")

    assert read_operators(tmp_path / "operators.csv") == found


PUBLISHED_SIZES = [  # millions of multiply-accumulates and of parameters
    ("ResNet50", 4110, 25.6),  # https://github.com/huggingface/pytorch-image-models results tables
    ("MobileNetV2-1.0", 310, 3.5),
    ("MobileNetV1", 580, 4.2),
    ("MobileNetV3-small", 57, 2.54),
    ("MobileNetV3-L", 217, 5.4),
    ("DenseNet121", 2870, 7.98),
    ("MobileOne-S0", 280, 2.1),  # https://arxiv.org/abs/2206.04040, table 9
    ("MobileOne-S1", 825, 4.8),
    ("MobileOne-S3", 1896, 10.1),
    ("FastViT-T8", 700, 4.0),  # https://arxiv.org/abs/2303.14189, table 5
    ("FastViT-SA12", 1940, 11.5),
    ("FastViT-SA24", 3800, 21.5),
    ("FastViT-SA36", 5600, 31.5),
    ("FastViT-MA36", 7900, 44.1),
    ("EfficientFormer-L1", 1300, 12.3),  # https://arxiv.org/abs/2206.01191, table 1
    ("EfficientFormer-L3", 3900, 31.3),
    ("EfficientFormer-L7", 10200, 82.1),
    ("PoolFormer-S12", 1820, 11.9),
]


@pytest.mark.parametrize(("name", "macs", "weights"), PUBLISHED_SIZES, ids=[row[0] for row in PUBLISHED_SIZES])
def test_rebuilt_networks_have_the_published_size_when_they_are_converted(name: str, macs: int, weights: float) -> None:
    found = read_operators()[name]

    assert sum(work.macs * count for work, count in found.items()) / 1e6 == pytest.approx(macs, rel=0.05)
    assert sum(work.weights * count for work, count in found.items()) / 1e6 == pytest.approx(weights, rel=0.05)


def test_every_rebuilt_network_is_in_the_committed_table() -> None:
    assert set(read_operators()) == set(NETWORKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileOne-S0", "DeiT-T", "EfficientFormer-L1"])
def test_committed_operators_are_what_converting_gives_when_repeated(name: str) -> None:
    assert measure(NETWORKS[name]) == read_operators()[name]
