"""Makes the packages of coremltools 7, whose blob records leave their reserved fields as they find the memory.

    python3.11 -m venv oldest && oldest/bin/pip install coremltools==7.0 'numpy<2'
    oldest/bin/python tests/targets/coreml/packages/make_oldest.py iOS15

Beside each package stands what NumPy computes. Version 6 has no wheel for Python 3.11.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813  # as its own documentation does

HERE = Path(__file__).parent
MANIFEST = HERE / "manifest.json"
Array = np.ndarray[Any, np.dtype[Any]]


def convolve(image: Array, weight: Array, bias: Array) -> Array:
    """A 3x3 convolution with stride 1 and no padding, ``(N, C, H, W)``."""
    height, width = image.shape[2] - 2, image.shape[3] - 2
    patches = [image[:, :, row : row + height, column : column + width] for row in range(3) for column in range(3)]
    stacked = np.stack(patches, axis=2).reshape(len(image), -1, height, width)
    result: Array = np.einsum("nkhw,ok->nohw", stacked, weight.reshape(len(weight), -1))
    return result + bias[:, None, None]


def main(opset: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    weight, bias = rng.standard_normal((4, 3, 3, 3)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    table = rng.standard_normal(16).astype(np.float32)
    indices = rng.integers(0, 16, (5, 4))
    integers, scale = rng.integers(-128, 128, (6, 5), dtype=np.int8), np.float32(0.02)

    @mb.program(input_specs=[mb.TensorSpec(shape=image.shape)], opset_version=ct.target[opset])
    def program(image: Any) -> Any:
        x = mb.relu(x=mb.conv(x=image, weight=weight, bias=bias))
        x = mb.reduce_mean(x=x, axes=[2, 3], keep_dims=False)
        if opset == "iOS15":  # has no compressed constants
            first, second = table[indices], integers * scale
        else:
            packed = np.packbits(indices.astype(np.uint8)[..., None] >> np.arange(4) & 1, bitorder="little")
            first = mb.constexpr_lut_to_dense(indices=packed, lut=table, shape=np.array([5, 4], np.uint32))
            second = mb.constexpr_affine_dequantize(
                quantized_data=integers, zero_point=np.int8(0), scale=scale, axis=np.int32(0)
            )
        return mb.linear(x=mb.linear(x=x, weight=first), weight=second, name="result")

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target[opset],
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    name = f"coremltools_{ct.__version__}_{opset}"
    model.save(str(HERE / f"{name}.mlpackage"))
    pooled = np.maximum(convolve(image, weight, bias), 0).mean((2, 3))
    np.savez(HERE / f"{name}.npz", image=image, expected=pooled @ table[indices].T @ (integers * scale).T)
    manifest = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    manifest[name] = {
        "tool": "coremltools",
        "version": ct.__version__,
        "front_end": "MIL builder",
        "opset": opset,
        "script": Path(__file__).name,
    }
    MANIFEST.write_text(json.dumps(dict(sorted(manifest.items())), indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
