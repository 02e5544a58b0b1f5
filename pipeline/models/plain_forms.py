"""Operators in a spelling that some deployment format does not know, as the plain operators that all of them know.

Average pools with a divisor, which torch's ONNX exporter drops; sums and differences with ``alpha``, which the
converter to TFLite does not take; grouped-query attention, whose keys that converter gives to the wrong heads;
``a & b``, which coremltools takes for an operator in place by its name, __and__; and views, which tracing writes for a
reshape that needs no copy there. A convolution that runs in another memory layout, or the parts that take the place
of a fused operator, may need one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph
from torch.nn import functional as F

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
SUMS = (aten.add.Tensor, aten.sub.Tensor)
SPATIAL_AXES = {aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
BITWISE = {
    getattr(getattr(aten, f"__{name}__"), overload): getattr(getattr(aten, f"bitwise_{name}"), overload)
    for name in ("and", "or", "xor")
    for overload in ("Tensor", "Scalar")
} | {
    getattr(getattr(aten, f"__{name[0]}shift__"), overload): getattr(getattr(aten, f"bitwise_{name}_shift"), plain)
    for name in ("left", "right")
    for overload, plain in (("Tensor", "Tensor"), ("Scalar", "Tensor_Scalar"))
}
"""The methods behind Python's operators, and torch's functions that compute the same."""


def in_plain_forms(program: ExportedProgram) -> ExportedProgram:
    """The same program without such spellings."""
    ways: dict[Any, Callable[..., Any]] = {}
    for node in program.graph.nodes:
        node.target = BITWISE.get(node.target, node.target) if node.op == "call_function" else node.target
        if node.target in SPATIAL_AXES and len(node.args) > 6 and node.args[6] is not None:
            ways[node.target] = _scaled(node.target, SPATIAL_AXES[node.target])
        elif node.target in SUMS and node.kwargs.get("alpha", 1) != 1:
            ways[node.target] = _weighted(node.target)
        elif node.target is ATTENTION and node.kwargs.get("enable_gqa"):
            ways[node.target] = _with_keys_of_each_head
    plain: ExportedProgram = program.run_decompositions(ways) if ways else program
    views_to_reshapes(plain.graph)
    return plain


def views_to_reshapes(graph: Graph) -> None:
    """Let every view copy where the memory layout at run time needs it, in place. A decomposition writes views anew."""
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default


def _weighted(operator: Any) -> Callable[..., Any]:
    """A sum or a difference of which the second part is multiplied by ``alpha``."""

    def total(x: Tensor, other: Tensor, *, alpha: float = 1) -> Any:
        return NotImplemented if alpha == 1 else operator(x, other * alpha)

    return total


def _with_keys_of_each_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention in which several heads share keys and values, with a copy of these for each."""
    if not enable_gqa:
        return NotImplemented
    heads = query.shape[-3] // key.shape[-3]
    keys, values = (x.unsqueeze(-3).expand(*x.shape[:-2], heads, *x.shape[-2:]).flatten(-4, -3) for x in (key, value))
    return ATTENTION(query, keys, values, mask, dropout, is_causal, scale=scale)


def _scaled(operator: Any, spatial: int) -> Callable[..., Any]:
    """An average pool that divides by the window's size, and its result times ``size / divisor``."""

    def pool(
        x: Tensor,
        kernel: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        _: bool = True,  # whether padding counts: not with a divisor
        divisor_override: int | None = None,
    ) -> Any:
        if divisor_override is None:
            return NotImplemented
        size, step, around = (_per_axis(value, spatial) for value in (kernel, stride or kernel, padding))
        elements = torch.Size(size).numel()
        if ceil_mode:
            widths = []
            for extent, window, by, before in zip(x.shape[-spatial:], size, step, around, strict=True):
                count = -(-(extent + 2 * before - window) // by) + 1
                count -= int((count - 1) * by >= extent + before)  # a window that starts in the padding is dropped
                widths.append((before, max(before, (count - 1) * by + window - extent - before)))
            x, around = F.pad(x, [side for pair in reversed(widths) for side in pair]), [0] * spatial
        return operator(x, size, step, around, False, True) * (elements / divisor_override)

    return pool


def _per_axis(value: Sequence[int], spatial: int) -> list[int]:
    return list(value) * spatial if len(value) == 1 else list(value)
