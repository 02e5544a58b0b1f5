"""Makes the packages of older coremltools, one per run, from TorchScript; a few seconds.

    pip install --target older --no-deps coremltools==8.3.0
    PYTHONPATH=older python tests/targets/coreml/packages/make_older.py iOS16

Version 7.2 does not work beside NumPy 2.

They are kept because one environment holds one version. Beside each stands what torch computes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import coremltools as ct
import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
MANIFEST = HERE / "manifest.json"


class Network(nn.Module):
    """Convolutions with a residual, batch and layer norm, pooling, upsampling, attention and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.depthwise, self.up = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), nn.ConvTranspose2d(8, 8, 2, 2)
        self.layer_norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)
        self.recurrent, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.norm(self.stem(image)))
        x = x + nn.functional.leaky_relu(self.depthwise(x), 0.1)
        x = nn.functional.max_pool2d(self.up(x), 3, 2, 1)
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 0, 0, 1)), 4, 4)
        x = self.layer_norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + torch.softmax(q @ k.transpose(1, 2) * 8**-0.5, -1) @ v
        x = self.recurrent(x)[0][:, -1]
        return torch.softmax(self.head(nn.functional.gelu(x)), -1)


def main(opset: str) -> None:
    torch.manual_seed(0)
    network, image = Network().eval(), torch.randn(2, 3, 16, 16)
    name = f"coremltools_{ct.__version__}_{opset}"
    with torch.no_grad():
        expected = network(image)
        model = ct.convert(
            torch.jit.trace(network, image),
            inputs=[ct.TensorType(name="image", shape=image.shape)],
            outputs=[ct.TensorType(name="probabilities")],
            minimum_deployment_target=ct.target[opset],
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    model.save(str(HERE / f"{name}.mlpackage"))
    np.savez(HERE / f"{name}.npz", image=image.numpy(), expected=expected.numpy())
    manifest = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    manifest[name] = {
        "tool": "coremltools",
        "version": ct.__version__,
        "front_end": "TorchScript",
        "opset": opset,
        "script": Path(__file__).name,
    }
    MANIFEST.write_text(json.dumps(dict(sorted(manifest.items())), indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
