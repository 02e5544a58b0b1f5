"""Programs of other front ends and versions of coremltools: TorchScript, with its loops and lists, and TensorFlow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from targets.coreml.interpreter import Interpreter
from targets.coreml.sdk import quiet
from tests.targets.coreml.interpreter.mil import ct

PACKAGES = Path(__file__).parents[1] / "packages"


@pytest.mark.parametrize("name", sorted(path.stem for path in PACKAGES.glob("*.mlpackage")))
def test_kept_package_equals_what_its_framework_computed(name: str) -> None:
    with np.load(PACKAGES / f"{name}.npz") as stored:
        inputs = {key: stored[key] for key in stored.files}
    expected = inputs.pop("expected")
    (got,) = Interpreter(PACKAGES / f"{name}.mlpackage").run(inputs).values()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


class Last(nn.Module):
    """The outputs of a recurrent layer, without its states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


RECURRENT = {
    "lstm": lambda: nn.LSTM(5, 4, batch_first=True),
    "lstm in both directions": lambda: nn.LSTM(5, 4, bidirectional=True),
    "gru of two layers": lambda: nn.GRU(5, 4, num_layers=2),
    "gru in both directions": lambda: nn.GRU(5, 4, batch_first=True, bidirectional=True),
    "rnn": lambda: nn.RNN(5, 4, nonlinearity="relu"),
}


@pytest.mark.parametrize("opset", ["iOS15", "iOS17"])
@pytest.mark.parametrize("name", RECURRENT)
def test_program_from_torchscript_equals_torch(name: str, opset: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Last(RECURRENT[name]()).eval(), torch.randn(3, 2, 5)
    with quiet(), torch.no_grad():
        model = ct.convert(
            torch.jit.trace(network, x),
            inputs=[ct.TensorType(name="x", shape=x.shape)],
            outputs=[ct.TensorType(name="y")],
            minimum_deployment_target=ct.target[opset],
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        model.save(str(tmp_path / "m.mlpackage"))
    got = Interpreter(tmp_path / "m.mlpackage").run({"x": x.numpy()})["y"]
    np.testing.assert_allclose(got, network(x).detach().numpy(), rtol=1e-4, atol=1e-5)
