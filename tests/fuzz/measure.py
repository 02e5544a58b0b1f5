"""How far outputs lie apart, and how far rounding alone would move them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

Array = np.ndarray[Any, Any]

CHANNEL_AXIS = {
    "aten.conv1d.default": 0, "aten.conv2d.default": 0, "aten.conv3d.default": 0, "aten.linear.default": 0,
    "aten.conv_transpose1d.default": 1, "aten.conv_transpose2d.input": 1,
}  # fmt: skip
"""Where the weight of each operator that has one holds its output channels."""


PRESCRIBED = {"aten.softmax.int": 1 / 256, "aten.sigmoid.default": 1 / 256, "aten.tanh.default": 1 / 128}
"""Steps of the results for which integer kernels allow no other:
https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec"""

JOINS = ("aten.cat.default", "aten.stack.default")


@dataclass(frozen=True)
class Difference:
    """What is wrong with one output.

    Attributes:
        what: ``count``, ``shape``, ``dtype``, ``finite`` or ``dB``.
    """

    output: int
    what: str
    text: str

    def __str__(self) -> str:
        return f"output {self.output}: {self.text}"


def closeness_db(expected: Array, got: Array) -> float:
    """Signal to noise ratio in dB; for integers and truth values, the share of unlike elements in dB.

    Infinite where they are equal. Elements that are not finite in both are left out; see `differences`.

    >>> closeness_db(np.array([3.0, 4.0]), np.array([3.0, 3.5]))
    20.0
    >>> closeness_db(np.arange(10), np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 0]))
    10.0
    """
    if expected.dtype.kind != "f":
        unlike = float(np.mean(expected.astype(np.float64) != got.astype(np.float64))) if expected.size else 0.0
        return math.inf if unlike == 0 else -10 * math.log10(unlike)
    finite = np.isfinite(expected) & np.isfinite(got)
    a, b = expected[finite].astype(np.float64), got[finite].astype(np.float64)
    noise, signal = float(np.square(a - b).sum()), float(np.square(a).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def differences(
    expected: Sequence[Array], got: Sequence[Array], bounds: Sequence[float], *, any_integer: bool = False
) -> list[Difference]:
    """Outputs that are not what is expected.

    Args:
        bounds: The least `closeness_db` per output.
        any_integer: Whether integers and truth values may come in another type that holds them: TFLite and Core ML have
            no int64 everywhere, and Core ML gives no truth values.
    """
    if len(expected) != len(got):
        return [Difference(-1, "count", f"{len(got)} outputs instead of {len(expected)}")]
    found = []
    for index, (a, b, bound) in enumerate(zip(expected, got, bounds, strict=True)):
        holds = a.dtype.kind in "biu"
        if a.shape != b.shape:
            found.append(Difference(index, "shape", f"shape {b.shape} instead of {a.shape}"))
        elif not (a.dtype == b.dtype or (any_integer and holds)):
            found.append(Difference(index, "dtype", f"{b.dtype} instead of {a.dtype}"))
        elif a.dtype.kind == "f" and not np.array_equal(np.isfinite(a), np.isfinite(b)):
            count = int((np.isfinite(a) != np.isfinite(b)).sum())
            found.append(Difference(index, "finite", f"{count} of {a.size} values are not finite, or should not be"))
        elif (close := closeness_db(a, b)) < bound:
            found.append(Difference(index, "dB", f"{close:.1f} dB, where {bound:.1f} are expected"))
    return found


def bounds(
    expected: Sequence[Array], shaken: Sequence[Array], *, most: float, share: float = 20.0, below: float = 6.0
) -> list[float]:
    """The dB to ask of each output: ``most``, or less where rounding alone moves the output further.

    Args:
        shaken: The outputs after as much rounding as is allowed.
        share: The most to ask of integers, as `closeness_db` counts them.
        below: How far below what rounding does.
    """
    return [
        min(most if a.dtype.kind == "f" else share, closeness_db(a, b) - below)
        for a, b in zip(expected, shaken, strict=True)
    ]


def shaken(program: GraphModule, inputs: Sequence[Tensor], *, steps: float = 0.02) -> list[Array]:
    """The outputs of a quantized program in which every value is moved by up to so many steps before it is rounded.

    Runtimes add in another order, multiply instead of dividing, or round twice, which lets ties fall elsewhere: one
    value in fifty may become its neighbour.
    """
    generator = torch.Generator().manual_seed(0)

    class Shaking(Interpreter):
        def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if str(target) == "quantized_decomposed.quantize_per_tensor.default":
                value, scale, *rest = args
                noise = torch.rand(value.shape, generator=generator) * 2 - 1
                args = (value + noise * steps * float(scale), scale, *rest)
            return super().call_function(target, args, kwargs)

    with torch.no_grad():
        results = Shaking(program).run(*inputs)
    return [result.numpy() for result in (results if isinstance(results, tuple | list) else (results,))]


def rounded_plainly(
    graph: GraphModule, inputs: Sequence[Tensor], *, levels: int = 256, zeros: bool = True
) -> list[Array]:
    """The outputs of a float graph in which every value is rounded to some levels of its own, and weights per channel.

    What plain INT8 quantization costs where nothing shares a grid with anything else, but for `PRESCRIBED` ones: of
    joined tensors, each keeps its own levels. Large negative constants (masks) are left as they are. Operators in turn
    have a few levels less, so that the levels of a value and of its multiple do not coincide.

    Args:
        zeros: Whether small values become zero; where they keep their value, no divisor is lost.
    """
    places = {node: place for place, node in enumerate(graph.graph.nodes)}

    class Rounding(Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            rounds = n.op in ("call_function", "placeholder") and str(n.target) not in JOINS
            if rounds and isinstance(result, Tensor) and result.is_floating_point():
                step = PRESCRIBED.get(str(n.target))
                plain = _on_own_grid(result, levels - places[n] % 5) if step is None else (result / step).round() * step
                return plain if zeros else torch.where(plain == 0, result, plain)
            return result

        def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            axis = CHANNEL_AXIS.get(str(target))
            if axis is not None:
                args = (args[0], _per_channel(args[1], axis), *args[2:])
            return super().call_function(target, args, kwargs)

    with torch.no_grad():
        results = Rounding(graph).run(*inputs)
    return [result.numpy() for result in (results if isinstance(results, tuple | list) else (results,))]


def _on_own_grid(value: Tensor, levels: int) -> Tensor:
    if value.numel() == 0 or not value.isfinite().all() or float(value.min()) <= -9e3:
        return value
    low, high = min(float(value.min()), 0.0), max(float(value.max()), 0.0)
    scale = (high - low) / (levels - 1)
    if scale == 0:
        return value
    zero = round(-low / scale)
    return (((value / scale).round() + zero).clamp(0, levels - 1) - zero) * scale


def _per_channel(weight: Tensor, axis: int) -> Tensor:
    others = [dim for dim in range(weight.ndim) if dim != axis]
    scale = (weight.abs().amax(others, keepdim=True) / 127).clamp(min=1e-12)
    return (weight / scale).round() * scale
