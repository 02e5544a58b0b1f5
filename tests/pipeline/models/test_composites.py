"""A decomposed program, and what becomes of TorchScript, hold the functions that the module called."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from pipeline.core import TensorSpec
from pipeline.models.capture import capture
from pipeline.models.checkpoints.torchscript import _program
from pipeline.models.composites import composed

X = TensorSpec(name="x", shape=(3, 8, 8))


class Layers(nn.Module):
    """Each operator that is decomposed, and a product of activations, which is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 8, 3, padding=1, groups=1), nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.conv1, self.norm = nn.Conv1d(8, 8, 3, dilation=2), nn.LayerNorm(8)
        self.fc, self.plain = nn.Linear(8, 6), nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.conv1(self.up(self.conv(x)).flatten(2)).mean(-1))
        z = self.plain(torch.softmax(self.fc(y), -1))
        return torch.log_softmax(z, -1), torch.bmm(z[:, :, None], z[:, None])


NAMES = {"conv2d": 1, "conv_transpose2d": 1, "conv1d": 1, "layer_norm": 1, "linear": 2, "softmax": 1, "log_softmax": 1}


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.group, self.batch = nn.GroupNorm(2, 4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        larger = functional.interpolate(self.batch(self.group(x)), scale_factor=2.0, mode="bilinear")
        return functional.interpolate(larger, scale_factor=1.5)


def test_norms_and_resizings_of_recorded_operators_are_functions_again() -> None:
    module, x = Norms().eval(), torch.randn(1, 4, 3, 3)
    graph = make_fx(module)(x)
    assert torch.ops.aten.native_group_norm.default in {node.target for node in graph.graph.nodes}
    captured = composed(export(graph, (x,), strict=False))
    names = {str(node.target) for node in captured.graph.nodes if node.op == "call_function"}
    assert "aten.group_norm.default" in names
    assert not any("native_group" in name or "native_batch_norm.default" in name for name in names)
    assert {"aten.upsample_bilinear2d.vec", "aten.upsample_nearest2d.vec"} <= names
    torch.testing.assert_close(captured.module()(x), module(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["decomposed", "TorchScript"])
def test_the_functions_are_back_and_compute_the_same(kind: str) -> None:
    torch.manual_seed(0)
    module, x = Layers().eval(), torch.randn(13, 3, 8, 8)
    if kind == "decomposed":
        program = export(module, (x,), dynamic_shapes=({0: Dim.AUTO},)).run_decompositions()
        assert torch.ops.aten.addmm.default in {node.target for node in program.graph.nodes}
    else:
        program = _program(torch.jit.trace(module, x), (X,), "model.pt")
    captured = capture(program.module(), (X,))
    found = Counter(str(node.target).split(".")[1] for node in captured.graph.nodes if node.op == "call_function")
    assert {name: found[name] for name in NAMES} == NAMES
    assert found["bmm"] == 1
    few = torch.randn(2, 3, 8, 8)
    for expected, value in zip(module(few), captured.module(check_guards=False)(few), strict=True):
        torch.testing.assert_close(value, expected)
