"""What each ATen operator does to labels: which indices of its operands and results can only be removed together.

An operator that is not listed here, and that torch does not tag as pointwise, keeps all its operands' channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.stages.prune.labels import Axes, Axis, Labels, kept_axis


class Context(Protocol):
    """What rules ask of the trace that they are part of."""

    labels: Labels

    def choose_axis(self, sizes: Sequence[int], merged: bool) -> int:
        """Which of several axes that a labelled axis was cut into may shrink; it was merged with others before."""

    def note_size(self, axis: Axis) -> None:
        """Hear of an axis whose size the code that runs may have written down."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operator, before its results have labels.

    Attributes:
        arguments: Everything that it was called with, by the names of its schema.
        axes: Labels of its tensors, by the same names; of lists of tensors, a list.
        result: What it returned.
    """

    name: str
    arguments: dict[str, Any]
    axes: dict[str, Any]
    result: Any
    context: Context

    @property
    def labels(self) -> Labels:
        return self.context.labels

    def reason(self, what: str) -> str:
        """Why channels must stay because of this operator."""
        return f"{self.name} {what}"

    def dims(self, name: str = "dim") -> list[int]:
        """The axes of ``self`` or ``input`` that an argument names, counted from the front; all where it is empty."""
        value = self.arguments.get(name)
        rank = len(self.operand())
        values = list(range(rank)) if value is None or value == [] else [value] if isinstance(value, int) else value
        return [dim % max(rank, 1) for dim in values]

    def operand(self) -> Axes:
        """Labels of the first operand."""
        axes: Axes = self.axes["self"] if "self" in self.axes else self.axes["input"]
        return axes

    def tensors(self) -> list[Axes]:
        """Labels of all tensors among the arguments."""
        found: list[Axes] = []
        for axes in self.axes.values():
            found += axes if isinstance(axes, list) else [axes]
        return found


Rule = Callable[[Call], Any]
"""Gives the `Axes` of the result, or a list of them, one per result."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of some operators, by their base names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def rule_of(operator: Any) -> Rule:
    """The rule of an ATen operator overload."""
    name = base_name(operator)
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in operator.tags:
        return pointwise
    return unknown


def base_name(operator: Any) -> str:
    """``add`` for ``aten.add_.Tensor``."""
    return re.sub(r"(?<=[a-z0-9])_$", "", operator.overloadpacket.__name__)


def unknown(call: Call) -> list[Axes]:
    """Keep the channels of all operands, and of the results."""
    for axes in call.tensors():
        keep_all(call, axes, range(len(axes)), "is an operator that pruning does not know")
    return []


def keep_all(call: Call, axes: Axes, dims: Iterable[int], what: str) -> None:
    """Forbid removal along some axes."""
    for dim in dims:
        call.labels.keep(axes[dim], call.reason(what))


def mixed(call: Call, axes: Axes, dims: Iterable[int]) -> Axes:
    """The axes, of which some are taken together, and so must stay."""
    dims = set(dims)
    keep_all(call, axes, dims, "takes all its channels together")
    return tuple(kept_axis(len(axis)) if dim in dims else axis for dim, axis in enumerate(axes))


def joined(call: Call, parts: Sequence[Axis]) -> Axis:
    """Axes of one size that are read at the same positions, as one."""
    labelled = [part for part in parts if part.any()]
    for part in parts:
        if labelled:
            call.labels.join(labelled[0], part, call.reason("joins its channels with values whose number is fixed"))
    return labelled[0] if labelled else parts[0]


def broadcast(call: Call, operands: Sequence[Axes], rank: int | None = None) -> Axes:
    """Labels of operands that are broadcast against each other."""
    rank = max(map(len, operands), default=0) if rank is None else rank
    found = []
    for dim in range(-rank, 0):
        parts = [axes[dim] for axes in operands if len(axes) >= -dim]
        size = max((len(part) for part in parts), default=1)
        whole = [part for part in parts if len(part) == size]
        found.append(joined(call, whole) if whole else kept_axis(size))
    return tuple(found)


@rule("copy", "_prelu_kernel", "hardswish", "log_sigmoid_forward", "masked_fill", "where", "fill", "zero", "dropout")
def pointwise(call: Call) -> Axes:
    """Every element depends on the elements at its own position."""
    return broadcast(call, call.tensors(), call.result.ndim if isinstance(call.result, Tensor) else None)


@rule("detach", "alias", "clone", "_to_copy", "contiguous", "lift_fresh", "lift_fresh_copy")
def same(call: Call) -> Axes:
    """The result has the operand's axes."""
    return call.operand()


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def like(call: Call) -> Axes:
    """A new tensor of another's sizes: it follows that tensor."""
    return call.operand()


@rule(
    "zeros", "ones", "full", "empty", "arange", "scalar_tensor", "rand", "randn", "eye", "tril", "triu", "linspace",
    "new_zeros", "new_ones", "new_full", "new_empty",
)  # fmt: skip
def factory(call: Call) -> Axes:
    """A tensor that ``forward`` makes: where its size does not follow the layers, the pruned network does not run."""
    if call.tensors() and call.name in ("tril", "triu"):
        return mixed(call, call.operand(), range(len(call.operand())))
    axes = tuple(call.labels.new(size) for size in call.result.shape)
    for axis in axes:
        call.context.note_size(axis)
    return axes


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "_reshape_copy", "view_copy")
def view(call: Call) -> Axes:
    """A change of shape."""
    return reshaped(call, call.operand(), tuple(call.result.shape))


def reshaped(call: Call, axes: Axes, sizes: tuple[int, ...]) -> Axes:
    """Labels after a change of shape: axes are merged and cut where the products of their sizes meet."""
    found: list[Axis] = []
    old = [axis for axis in axes if len(axis) != 1]
    new = [size for size in sizes if size != 1]
    if 0 in sizes:
        return tuple(kept_axis(size) for size in sizes)
    while new:
        merged, cut = [old.pop(0)], [new.pop(0)]
        while (elements := math.prod(map(len, merged))) != math.prod(cut):
            if elements < math.prod(cut):
                merged.append(old.pop(0))
            else:
                cut.append(new.pop(0))
        found += cut_axis(call, merge_axes(call, merged), cut, merged=len(merged) > 1)
    parts = iter(found)
    return tuple(kept_axis(1) if size == 1 else next(parts) for size in sizes)


def merge_axes(call: Call, axes: Sequence[Axis]) -> Axis:
    """Several axes flattened to one."""
    if len(axes) == 1:
        return axes[0]
    sizes = tuple(map(len, axes))
    labelled = [dim for dim, axis in enumerate(axes) if axis.any()]
    if len(labelled) > 1:
        for dim in labelled:
            call.labels.keep(axes[dim], call.reason("merges two axes that both have channels"))
    if len(labelled) != 1:
        return kept_axis(math.prod(sizes))
    (dim,) = labelled
    shape = [1] * len(sizes)
    shape[dim] = sizes[dim]
    return np.broadcast_to(axes[dim].reshape(shape), sizes).reshape(-1)


def cut_axis(call: Call, axis: Axis, sizes: Sequence[int], *, merged: bool = False) -> list[Axis]:
    """One axis cut into several, only one of which may shrink: positions on it leave on all the others together."""
    if len(sizes) == 1:
        return [axis]
    found = [kept_axis(size) for size in sizes]
    if not axis.any():
        return found
    grid = np.array(call.labels.sets(axis)).reshape(sizes)
    varying = [dim for dim in range(len(sizes)) if (grid != grid.take([0], dim)).any()]
    dim = varying[0] if len(varying) == 1 else call.context.choose_axis(sizes, merged)
    rows = np.moveaxis(grid, dim, -1).reshape(-1, sizes[dim])
    found[dim] = call.labels.join_rows(rows, call.reason("joins its channels with values whose number is fixed"))
    call.context.note_size(found[dim])
    return found


@rule("permute", "permute_copy")
def permute(call: Call) -> Axes:
    """Axes change places."""
    return tuple(call.operand()[dim] for dim in call.arguments["dims"])


@rule("transpose", "swapaxes")
def transpose(call: Call) -> Axes:
    """Two axes change places."""
    axes = list(call.operand())
    if axes:
        first, second = call.arguments["dim0"], call.arguments["dim1"]
        axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


@rule("t", "numpy_T")
def matrix_transpose(call: Call) -> Axes:
    """The axes in reverse order."""
    return tuple(reversed(call.operand()))


@rule("unsqueeze", "squeeze")
def singletons(call: Call) -> Axes:
    """Axes of size 1 come or go."""
    return reshaped(call, call.operand(), tuple(call.result.shape))


@rule("expand")
def expand(call: Call) -> Axes:
    """Axes of size 1 are repeated."""
    axes, sizes = call.operand(), call.result.shape
    missing = len(sizes) - len(axes)
    return tuple(
        axes[dim - missing] if dim >= missing and len(axes[dim - missing]) == size else _written(call, size)
        for dim, size in enumerate(sizes)
    )


def _written(call: Call, size: int) -> Axis:
    """An axis whose size ``forward`` names: it can follow the layers, and where it does not, nothing runs."""
    axis = call.labels.new(size)
    call.context.note_size(axis)
    return axis


@rule("repeat", "tile")
def repeat(call: Call) -> Axes:
    """A tensor is repeated, like a concatenation with itself."""
    counts = call.arguments["repeats"] if "repeats" in call.arguments else call.arguments["dims"]
    axes = (*[kept_axis(1)] * (len(counts) - len(call.operand())), *call.operand())
    return tuple(
        np.tile(axis, count) if len(axis) > 1 else _written(call, count)
        for axis, count in zip(axes, counts, strict=True)
    )


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Axes | list[Axes]:
    """Every index of an axis is repeated in its place."""
    count, dim = call.arguments.get("repeats"), call.arguments.get("dim")
    if not isinstance(count, int) or dim is None:
        return unknown(call)
    axes = list(call.operand())
    axes[dim] = axes[dim].repeat(count)
    return tuple(axes)


@rule("flip")
def flip(call: Call) -> Axes:
    """Some axes run backwards."""
    dims = call.dims("dims")
    return tuple(axis[::-1].copy() if dim in dims else axis for dim, axis in enumerate(call.operand()))


@rule("roll")
def roll(call: Call) -> Axes:
    """Some axes are shifted by a fixed number."""
    return mixed(call, call.operand(), call.dims("dims"))


@rule("slice")
def cut(call: Call) -> Axes:
    """A range of an axis."""
    axes = list(call.operand())
    dim, step = call.arguments.get("dim", 0), call.arguments.get("step", 1)
    size = len(axes[dim])
    start, stop, _ = slice(call.arguments.get("start"), call.arguments.get("end")).indices(size)
    if axes[dim].any() and (start, stop, step) != (0, size, 1):
        _cut_evenly(call, axes[dim], [start, stop], step)
    axes[dim] = axes[dim][start:stop:step]
    call.context.note_size(axes[dim])
    return tuple(axes)


def _cut_evenly(call: Call, axis: Axis, borders: Sequence[int], step: int = 1) -> None:
    """Let a cut axis lose the same positions of equal parts, so that the borders move in proportion."""
    reason = call.reason("cuts its channels into parts of unlike sizes")
    if step > 1 and len(axis) % step == 0:
        call.labels.join_rows(axis.reshape(-1, step).T, reason)
    elif step > 1:
        call.labels.keep(axis, reason)
    else:
        part = math.gcd(len(axis), *borders)
        call.labels.join_rows(axis.reshape(-1, part), reason)
        if part == 1:
            call.labels.keep(axis, reason)


@rule("select", "unbind")
def select(call: Call) -> Axes | list[Axes]:
    """Single indices of an axis."""
    dim = call.arguments.get("dim", 0)
    axes = list(call.operand())
    call.labels.keep(axes.pop(dim), call.reason("picks single channels"))
    return tuple(axes) if isinstance(call.result, Tensor) else [tuple(axes)] * len(call.result)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "chunk", "tensor_split")
def split(call: Call) -> list[Axes]:
    """An axis is cut into several tensors."""
    axes = call.operand()
    dim = call.arguments.get("dim", 0) % len(axes)
    borders = np.cumsum([part.shape[dim] for part in call.result]).tolist()
    if axes[dim].any() and len(borders) > 1:
        _cut_evenly(call, axes[dim], borders)
    found = []
    for part in np.split(axes[dim], borders[:-1]):
        call.context.note_size(part)
        found.append((*axes[:dim], part, *axes[dim + 1 :]))
    return found


@rule("cat", "concat")
def concatenate(call: Call) -> Axes:
    """Tensors one behind the other along an axis."""
    parts = [axes for axes in call.axes["tensors"] if len(axes) == call.result.ndim]
    dim = call.arguments.get("dim", 0) % call.result.ndim
    return tuple(
        np.concatenate([axes[other] for axes in parts])
        if other == dim
        else joined(call, [axes[other] for axes in parts])
        for other in range(call.result.ndim)
    )


@rule("stack")
def stack(call: Call) -> Axes:
    """Tensors along a new axis."""
    axes = list(broadcast(call, call.axes["tensors"]))
    axes.insert(call.arguments.get("dim", 0) % call.result.ndim, kept_axis(len(call.axes["tensors"])))
    return tuple(axes)


@rule("index_select")
def index_select(call: Call) -> Axes:
    """Indices of an axis, by numbers."""
    dim = call.arguments["dim"]
    axes = list(call.operand())
    call.labels.keep(axes[dim], call.reason("picks single channels"))
    axes[dim] = kept_axis(call.result.shape[dim])
    return tuple(axes)


@rule("index")
def index(call: Call) -> Axes | list[Axes]:
    """Axes that are not indexed keep their labels, where the indices are side by side."""
    indices = call.arguments["indices"]
    at = [dim for dim, value in enumerate(indices) if value is not None]
    if at != list(range(at[0], at[-1] + 1)):
        return unknown(call)
    axes = call.operand()
    keep_all(call, axes, at, "picks single channels")
    for tensor in call.axes["indices"]:
        keep_all(call, tensor, range(len(tensor)), "picks by position")
    rest = axes[at[-1] + 1 :]
    middle = call.result.shape[at[0] : call.result.ndim - len(rest)]
    return (*axes[: at[0]], *map(kept_axis, middle), *rest)


@rule("constant_pad_nd")
def pad(call: Call) -> Axes:
    """Constants around a tensor."""
    axes = list(call.operand())
    amounts = call.arguments["pad"]
    for number in range(len(amounts) // 2):
        dim = len(axes) - 1 - number
        if any(amounts[2 * number : 2 * number + 2]):
            call.labels.keep(axes[dim], call.reason("adds channels to them"))
            axes[dim] = kept_axis(call.result.shape[dim])
    return tuple(axes)


@rule(
    "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "upsample_linear1d", "upsample_bilinear2d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "upsample_bicubic2d", "upsample_trilinear3d",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "grid_sampler_2d", "grid_sampler_3d",
)  # fmt: skip
def spatial(call: Call) -> list[Axes]:
    """The last axes are mixed and change their sizes; batch and channels are left alone."""
    axes = call.operand()
    count = int(re.findall(r"[123](?=d)", call.name)[-1])
    keep_all(call, axes, range(len(axes) - count, len(axes)), "takes all its channels together")
    results = [call.result] if isinstance(call.result, Tensor) else list(call.result)
    leading = axes[: len(axes) - count]
    return [(*leading, *map(kept_axis, result.shape[len(leading) :])) for result in results]


@rule(
    "_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp",
    "cummax", "cummin", "sort", "topk", "argsort",
)  # fmt: skip
def along_one_axis(call: Call) -> list[Axes]:
    """One axis is mixed, the others are left alone."""
    axes = mixed(call, call.operand(), call.dims())
    results = [call.result] if isinstance(call.result, Tensor) else list(call.result)
    return [tuple(a if len(a) == s else kept_axis(s) for a, s in zip(axes, r.shape, strict=True)) for r in results]


@rule(
    "sum", "mean", "linalg_vector_norm", "norm", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean",
    "std_mean", "any", "all", "argmax", "argmin", "logsumexp", "median",
)  # fmt: skip
def reduction(call: Call) -> Any:
    """Some axes go. Of a sum, channels may be left out where zero adds nothing; of a mean, where nothing reads it.

    Which is the case, only the guard can tell.
    """
    if call.name in ("max", "min") and "other" in call.arguments:
        return pointwise(call)
    axes, dims = call.operand(), set(call.dims())
    if call.name not in ("sum", "mean", "linalg_vector_norm", "norm"):
        keep_all(call, axes, dims, "takes all its channels together")
    left = tuple(axis for dim, axis in enumerate(axes) if dim not in dims)
    held = tuple(kept_axis(1) if dim in dims else axis for dim, axis in enumerate(axes))
    found = held if call.arguments.get("keepdim", False) else left
    return found if isinstance(call.result, Tensor) else [found] * len(call.result)


@rule("mm", "bmm", "mv", "dot", "matmul", "addmm", "baddbmm", "addmv", "addbmm", "_int_mm")
def matrix_product(call: Call) -> Axes:
    """Products of matrices and vectors, with or without an added term."""
    factors = [axes for name, axes in call.axes.items() if name in FACTORS]
    added = [call.axes["self"]] if len(factors) == 3 else []
    left, right = factors[-2:]
    contracted = right[-2] if len(right) > 1 else right[-1]
    joined(call, [left[-1], contracted])
    batch = broadcast(call, [left[:-2], right[:-2]]) if len(left) > 2 else ()
    product = (*batch, *(left[-2:-1]), *(right[-1:] if len(right) > 1 else ()))
    return broadcast(call, [product, *added])


FACTORS = ("self", "mat1", "mat2", "batch1", "batch2", "vec", "other", "tensor")


@rule("linear")
def linear(call: Call) -> Axes:
    """A linear layer that is one operator."""
    x, weight = call.axes["input"], call.axes["weight"]
    joined(call, [x[-1], weight[1]])
    return broadcast(call, [(*x[:-1], weight[0]), *([call.axes["bias"]] if "bias" in call.axes else [])])


@rule("embedding")
def embedding(call: Call) -> Axes:
    """Rows of a table."""
    return (*call.axes["indices"], call.axes["weight"][1])


@rule("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution")
def convolution(call: Call) -> Axes:
    """A convolution, also grouped or transposed."""
    x, weight = call.axes["input"], call.axes["weight"]
    groups, transposed = call.arguments["groups"], call.arguments["transposed"]
    at = len(x) - (len(weight) - 2) - 1
    keep_all(call, x, range(at + 1, len(x)), "takes all its channels together")
    channels = (_to_channels if transposed else _from_channels)(call, x[at], weight, groups)
    if "bias" in call.axes:
        channels = joined(call, [channels, call.axes["bias"][0]])
    return (*x[:at], channels, *map(kept_axis, call.result.shape[at + 1 :]))


def removes_whole_groups(per_group_in: int, per_group_out: int) -> bool:
    """Whether a grouped convolution loses groups; else every group loses the same positions."""
    return per_group_in == 1 or per_group_out == 1


def _from_channels(call: Call, x: Axis, weight: Axes, groups: int) -> Axis:
    """Output channels of a convolution, whose weights are (out, in / groups, ...)."""
    outputs, inputs = weight[:2]
    if groups == 1:
        joined(call, [x, inputs])
        return outputs
    xs, ys = x.reshape(groups, -1), outputs.reshape(groups, -1)
    if removes_whole_groups(xs.shape[1], ys.shape[1]):
        call.labels.keep(inputs, call.reason("loses whole groups"))
        call.labels.join_rows(np.concatenate([xs, ys], 1).T, call.reason("reads channels whose number is fixed"))
        return outputs
    joined(call, [*xs, inputs])
    call.labels.join_rows(ys, "")
    return outputs


def _to_channels(call: Call, x: Axis, weight: Axes, groups: int) -> Axis:
    """Output channels of a transposed convolution, whose weights are (in, out / groups, ...)."""
    inputs, outputs = weight[:2]
    joined(call, [x, inputs])
    if groups == 1:
        return outputs
    xs = inputs.reshape(groups, -1)
    if removes_whole_groups(xs.shape[1], len(outputs)):
        call.labels.keep(outputs, call.reason("loses whole groups"))
        return call.labels.join_rows(xs.T, "").repeat(len(outputs))
    call.labels.join_rows(xs, "")
    return np.tile(outputs, groups)


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def last_axes_norm(call: Call) -> list[Axes]:
    """A norm over the last axes, with a scale and a shift for each of their indices."""
    x = call.operand()
    found = broadcast(call, [x, *(call.axes[name] for name in ("weight", "bias") if name in call.axes)])
    return [found, *([()] * 2)]


@rule("native_group_norm")
def group_norm(call: Call) -> list[Axes]:
    """A norm over equal groups of channels: all groups lose the same positions."""
    x = call.operand()
    channels = joined(call, [x[1], *(call.axes[name][0] for name in ("weight", "bias") if name in call.axes)])
    if channels.any():
        call.labels.join_rows(channels.reshape(call.arguments["group"], -1), call.reason("cuts channels into groups"))
    return [(x[0], channels, *x[2:])]


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_with_update", "_batch_norm_no_update", "batch_norm",
)  # fmt: skip
def batch_norm(call: Call) -> list[Axes]:
    """A norm of every channel on its own."""
    x = call.operand()
    values = [axes[0] for name, axes in call.axes.items() if name not in ("input", "self") and len(axes) == 1]
    return [(x[0], joined(call, [x[1], *values]), *x[2:])]


@rule("_weight_norm_interface")
def weight_norm(call: Call) -> list[Axes]:
    """A weight of a given length: the lengths belong to its channels."""
    return [broadcast(call, [call.axes["v"], call.axes["g"]])]


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip
def attention(call: Call) -> list[Axes]:
    """(batch, heads, length, width), of which the mask has the first two and both lengths."""
    query, key, value = (call.axes[name] for name in ("query", "key", "value"))
    joined(call, [query[-1], key[-1]])
    joined(call, [key[-2], value[-2]])
    mask = call.axes.get("attn_mask", call.axes.get("attn_bias"))
    masks = [(*mask[:-2], kept_axis(1), kept_axis(1))] if mask is not None and len(mask) == 4 else []
    leading = broadcast(call, [(*axes[:-2], kept_axis(1), kept_axis(1)) for axes in (query, key, value)] + masks)
    keep_all(call, key, [len(key) - 2], "takes all its channels together")
    return [(*leading[:-2], query[-2], value[-1])]


@rule("glu")
def gated(call: Call) -> Axes:
    """One half of an axis gates the other."""
    axes = list(call.operand())
    dim = call.arguments.get("dim", -1)
    axes[dim] = call.labels.join_rows(axes[dim].reshape(2, -1), call.reason("halves its channels"))
    return tuple(axes)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Axes:
    """Channels are cut into groups, which are interleaved."""
    axes = list(call.operand())
    rows = axes[1].reshape(call.arguments["groups"], -1)
    call.labels.join_rows(rows, call.reason("cuts channels into groups"))
    axes[1] = rows.T.reshape(-1)
    return tuple(axes)


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Axes:
    """Every ``factor**2`` channels become one."""
    axes = call.operand()
    rows = axes[-3].reshape(-1, call.arguments["upscale_factor"] ** 2)
    channels = call.labels.join_rows(rows.T, call.reason("joins its channels"))
    return (*axes[:-3], channels, *map(kept_axis, call.result.shape[-2:]))


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Axes:
    """Every channel becomes ``factor**2``."""
    axes = call.operand()
    channels = axes[-3].repeat(call.arguments["downscale_factor"] ** 2)
    return (*axes[:-3], channels, *map(kept_axis, call.result.shape[-2:]))


@rule("im2col")
def unfold(call: Call) -> Axes:
    """Every channel becomes one per kernel position."""
    axes = call.operand()
    return (*axes[:-3], axes[-3].repeat(math.prod(call.arguments["kernel_size"])), kept_axis(call.result.shape[-1]))


@rule("col2im")
def fold(call: Call) -> Axes:
    """The reverse of `unfold`."""
    axes = call.operand()
    rows = axes[-2].reshape(-1, math.prod(call.arguments["kernel_size"]))
    channels = call.labels.join_rows(rows.T, call.reason("joins its channels"))
    return (*axes[:-2], channels, *map(kept_axis, call.result.shape[-2:]))
