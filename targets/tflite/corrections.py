"""Corrections: operators that the converter gets wrong without an error, written so that it gets them right.

They hold for float models and for programs, for every goal, and keep what the graph computes:

1. An ``expand`` is left out for operators that broadcast; any other reader, and every ``repeat``, selects by indices.
   The converter permutes the axes of an image that is expanded to NHWC, but not those of the expansion; and it
   multiplies by the wrong rows where keys of one head are expanded to several heads.
2. Resizing to the nearest pixel selects rows and columns by torch's indices, where TFLite's formula gives others.
3. Bicubic and antialiased resizing is a product with a constant matrix for each axis.
4. A masked attention replaces the masked scores, so that a query that may look at nothing gives zeros, not NaN.
5. A transposed convolution is a convolution whose outputs interleave (see `transposed_convolutions`).
6. A constant minus a value is the negative value plus the constant, and a constant divided by one is its reciprocal
   times the constant, behind a barrier: the converter swaps the two operands, or merges them into the layer before.
7. A sum of integers is their mean times their number: the plain kernel of an int8 SUM gives one number for everything.
8. An operator that computes in float has barriers to the integers on its two sides. The converter passes grids on
   through operators such as SELECT: a masked score of -10,000 would end on the grid of the scores.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from targets.tflite.graph import (
    CLAMPS,
    Step,
    add_constant,
    arguments,
    aten,
    between_quantizers,
    calls,
    dequantize,
    dequantize_per_channel,
    held,
    is_float,
    moved,
    quantize,
    quantize_per_channel,
    shape_of,
)
from targets.tflite.transposed_convolutions import transposed_convolutions

logger = logging.getLogger(__name__)

IMAGE = 4
"""Axes of an image ``(N, C, H, W)``: the converter changes the layout of nothing else."""
MASKED = torch.finfo(torch.float32).min
EXPANDING, REPEATING = (aten.expand.default, aten.expand_as.default), (aten.repeat.default, aten.tile.default)
BROADCASTING = frozenset(
    {
        *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor),
        *(aten.maximum.default, aten.minimum.default, aten.where.self),
        *(aten.eq.Tensor, aten.ne.Tensor, aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor),
    }
)
"""Operators whose tensors may have axes of size 1 where others have more."""
NEAREST = (
    *(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec),
    *(aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec),
)
RESAMPLING = (
    aten.upsample_bicubic2d.vec,
    aten._upsample_bicubic2d_aa.vec,
    aten._upsample_bilinear2d_aa.vec,
)
REVERSED = (aten.rsub.Scalar, aten.rsub.Tensor, aten.reciprocal.default)
"""Operators whose first operand is the value and whose second one, if any, is a constant that it is taken from."""
CHOICES = frozenset(
    {
        *(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar),
        *(aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.masked_fill_.Scalar, aten.masked_fill_.Tensor),
    }
)
"""Operators whose integer kernel needs one grid for all tensors, where the program has several."""
MOVES = frozenset(
    {
        *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.clone.default, aten.slice.Tensor),
        *(aten.permute.default, aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims),
        *(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int, aten.select.int),
        *(*EXPANDING, aten.index_select.default, aten.argmax.default, aten.argmin.default),
    }
)
"""Operators of one tensor that give the same for integers as for the real numbers that these stand for."""


def correct(program: GraphModule, inputs: tuple[Tensor, ...]) -> Counter[str]:
    """Apply every correction to a captured program, in place, and count the places that changed.

    Args:
        inputs: Examples of one sample, for the shapes.
    """
    changed: Counter[str] = Counter()
    for correction in CORRECTIONS:
        name, count = correction.__name__, correction(program)
        logger.debug("%s: %d places", name, count)
        if count:
            changed[name] = count
            program.graph.eliminate_dead_code()
            program.graph.lint()
            program.recompile()
            FakeTensorProp(program, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*inputs)
    return changed


def expansions(program: GraphModule) -> int:
    """Correction 1."""
    nodes = [node for node in _calls(program, *EXPANDING, *REPEATING) if len(shape_of(node)) >= IMAGE]
    for node in nodes:
        x = arguments(node)[0]
        if node.target in EXPANDING:
            for reader, read in _broadcasting_readers(node):
                if _shape_with(reader, read, x) == shape_of(reader):
                    reader.replace_input_with(read, x)
        size = (*[1] * (len(shape_of(node)) - len(shape_of(x))), *shape_of(x))
        with program.graph.inserting_before(node):
            steps = [] if size == shape_of(x) else [(aten.reshape.default, (list(size),))]
            for axis, (few, many) in enumerate(zip(size, shape_of(node), strict=True)):
                if few != many:
                    steps.append(_selection(program, axis, torch.arange(few).repeat(many // few)))
            node.replace_all_uses_with(moved(program.graph, x, steps))
    return len(nodes)


def _broadcasting_readers(node: Node) -> list[tuple[Node, Node]]:
    """Operators that broadcast what they read, and what each reads of a node: it, or what its integers stand for."""
    reads = [node, *(value for integers in node.users if calls(integers, quantize) for value in integers.users)]
    same = [read for read in reads if read is node or arguments(read)[1:] == arguments(arguments(node)[0])[1:]]
    return [(reader, read) for read in same for reader in read.users if reader.target in BROADCASTING]


def _shape_with(reader: Node, read: Node, instead: Node) -> torch.Size:
    """The shape of an operator that broadcasts, if it read another value."""
    sources = [instead if source is read else source for source in reader.all_input_nodes]
    return torch.Size(np.broadcast_shapes(*(tuple(shape_of(source)) for source in sources)))


def _selection(program: GraphModule, axis: int, indices: Tensor) -> Step:
    return aten.index_select.default, (axis, add_constant(program, "selected", indices))


def nearest_pixels(program: GraphModule) -> int:
    """Correction 2."""
    count = 0
    for node in _calls(program, *NEAREST):
        x, size, factors = arguments(node, None, None, None)
        indices = [
            _read_positions(node.target, shape_of(x), axis, size, factors) for axis in range(2, len(shape_of(x)))
        ]
        if node.target is aten.upsample_nearest2d.vec and all(
            torch.equal(found, _half_pixel(before, len(found)))
            for found, before in zip(indices, shape_of(x)[2:], strict=True)
        ):
            continue
        with program.graph.inserting_before(node):
            steps = [_selection(program, axis + 2, found) for axis, found in enumerate(indices)]
            node.replace_all_uses_with(moved(program.graph, x, steps))
        count += 1
    return count


def _read_positions(resize: Any, shape: torch.Size, axis: int, size: Any, factors: Any) -> Tensor:
    """The position along an axis that each output of a resizing reads, as torch computes it."""
    along = [1] * len(shape)
    along[axis] = -1
    positions = torch.arange(shape[axis], dtype=torch.float32).reshape(along).expand(1, 1, *shape[2:])
    read: Tensor = resize(positions, size, factors)
    return read.movedim(axis, -1).flatten(0, -2)[0].long()


def _half_pixel(before: int, after: int) -> Tensor:
    """What RESIZE_NEAREST_NEIGHBOR reads, as the converter sets it: ``floor((i + 0.5) * before / after)``."""
    scale = torch.tensor(before / after, dtype=torch.float32)
    return ((torch.arange(after) + 0.5) * scale).floor().clamp(max=before - 1).long()


def resamplings(program: GraphModule) -> int:
    """Correction 3."""
    nodes = _calls(program, *RESAMPLING)
    for node in nodes:
        x, *settings = arguments(node)
        down, across = (_matrix(node.target, shape_of(x), axis, settings) for axis in (2, 3))
        graph = program.graph
        with graph.inserting_before(node):
            rows = add_constant(program, f"{node.name}_rows", down)
            columns = add_constant(program, f"{node.name}_columns", across.T)
            wide = graph.call_function(aten.matmul.default, (x, columns))
            node.replace_all_uses_with(graph.call_function(aten.matmul.default, (rows, wide)))
    return len(nodes)


def _matrix(resize: Any, shape: torch.Size, axis: int, settings: list[Any]) -> Tensor:
    """``(outputs, inputs) float32``: what a resizing does along one axis, read off unit vectors."""
    units = torch.eye(shape[axis], dtype=torch.float64)[None, :, :, None].expand(-1, -1, -1, shape[5 - axis])
    found: Tensor = resize(units if axis == 2 else units.mT, *settings)
    return (found[0, :, :, 0] if axis == 2 else found[0, :, 0, :]).T.float().contiguous()


def masked_attention(program: GraphModule) -> int:
    """Correction 4."""
    count = 0
    for node in _calls(program, aten.scaled_dot_product_attention.default):
        query, key, value, mask, *_ = arguments(node, None, None, None, None)
        if mask is None or node.kwargs.get("enable_gqa"):
            continue
        factor = node.kwargs.get("scale") or shape_of(query)[-1] ** -0.5
        graph = program.graph
        with graph.inserting_before(node):
            scaled = graph.call_function(aten.mul.Tensor, (query, factor))
            keys = graph.call_function(aten.transpose.int, (key, -2, -1))
            scores = graph.call_function(aten.matmul.default, (scaled, keys))
            visible = mask
            if is_float(mask):
                visible = graph.call_function(aten.gt.Scalar, (mask, MASKED))
                scores = graph.call_function(aten.add.Tensor, (scores, mask))
            masked = add_constant(program, "masked_score", torch.tensor(MASKED))
            chosen = graph.call_function(aten.where.self, (visible, scores, masked))
            shares = graph.call_function(aten.softmax.int, (chosen, -1))
            found = graph.call_function(aten.matmul.default, (shares, value))
            looking = graph.call_function(aten.any.dim, (visible, -1, True))
            factors = graph.call_function(aten.to.dtype, (looking, torch.float32))
            node.replace_all_uses_with(graph.call_function(aten.mul.Tensor, (found, factors)))
        count += 1
    return count


def reversed_operands(program: GraphModule) -> int:
    """Correction 6."""
    constant = _constants(program)
    count = 0
    for node in _calls(program, *REVERSED, aten.sub.Tensor, aten.div.Tensor):
        first, second, *_ = arguments(node, None, 1.0)
        value, other = (first, second) if node.target in REVERSED else (second, first)
        known = not isinstance(other, Node) or other in constant
        if not (isinstance(value, Node) and known and is_float(value)) or calls(value, dequantize) or node.kwargs:
            continue
        graph = program.graph
        with graph.inserting_before(node):
            if node.target in (aten.reciprocal.default, aten.div.Tensor):
                inverse = graph.call_function(aten.reciprocal.default, (held(graph, value),))
                instead = graph.call_function(aten.mul.Tensor, (inverse, other))
            else:
                negative = graph.call_function(aten.mul.Tensor, (value, -1.0))
                instead = graph.call_function(aten.add.Tensor, (negative, other))
        node.replace_all_uses_with(instead)
        count += 1
    return count


def _constants(program: GraphModule) -> set[Node]:
    """The nodes that no input reaches."""
    found = set[Node]()
    for node in program.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def sums(program: GraphModule) -> int:
    """Correction 7. The mean has the sum's integers, on a grid that is as many times finer: the product is exact."""
    count = 0
    for node in _calls(program, aten.sum.dim_IntList):
        quantizers = list(node.users)
        if not between_quantizers(node) or len(quantizers) != 1:
            continue
        x, axes, keep = arguments(node, None, None, False)
        axes = list(axes) if axes else list(range(len(shape_of(x))))
        number = math.prod(shape_of(x)[axis] for axis in axes)
        scale, *rest = arguments(quantizers[0])[1:]
        parameters = (scale / number, *rest)
        graph = program.graph
        with graph.inserting_before(node):
            mean = graph.call_function(aten.mean.dim, (x, axes, keep))
            integers = graph.call_function(quantize, (mean, *parameters))
            value = graph.call_function(dequantize, (integers, *parameters))
            node.replace_all_uses_with(graph.call_function(aten.mul.Tensor, (value, float(number))))
        count += 1
    return count


def float_operators(program: GraphModule) -> int:
    """Correction 8."""
    if not program.graph.find_nodes(op="call_function", target=quantize):
        return 0
    integer = set[Node]()
    count = 0
    for node in list(program.graph.nodes):
        if node.op != "call_function" or node.target in (*QUANTIZERS, *MOVES) or _is_barrier(node):
            continue
        if _computes_in_integers(node, integer):
            integer.add(node)
            continue
        reads = [(node, source) for source in node.all_input_nodes if calls(source, dequantize) or _is_moved(source)]
        for reader, source in (*reads, *((user, node) for user in node.users if calls(user, quantize))):
            with program.graph.inserting_before(reader):
                reader.replace_input_with(source, held(program.graph, source))
            count += 1
    return count


QUANTIZERS = (quantize, dequantize, quantize_per_channel, dequantize_per_channel)


def _is_barrier(node: Node) -> bool:
    return "optimization_barrier" in str(node.target) or "getitem" in str(node.target)


def _is_moved(node: Node) -> bool:
    return is_float(node) and (node.target in MOVES or "getitem" in str(node.target))


def _computes_in_integers(node: Node, integer: set[Node]) -> bool:
    """Whether an operator, with the clamp that fuses into it, reads nothing but integers and is read as integers."""
    if node.target in CHOICES or not is_float(node):
        return False
    sources = [source for source in node.all_input_nodes if is_float(source)]
    computed = [source for source in sources if source.op != "get_attr"]
    from_integers = all(source.target in (dequantize, dequantize_per_channel) for source in computed)
    fused = node.target in CLAMPS and integer.issuperset(computed)
    return bool(computed) and (from_integers or fused) and _ends_in_integers(node)


def _ends_in_integers(node: Node) -> bool:
    readers = list(node.users)
    if len(readers) == 1 and readers[0].target in CLAMPS and node.target not in CLAMPS:
        return _ends_in_integers(readers[0])
    return bool(readers) and all(calls(reader, quantize) for reader in readers)


def _calls(program: GraphModule, *operators: Any) -> list[Node]:
    return [node for node in program.graph.nodes if node.target in operators]


CORRECTIONS: tuple[Callable[[GraphModule], int], ...] = (
    expansions,
    nearest_pixels,
    resamplings,
    masked_attention,
    transposed_convolutions,
    reversed_operands,
    sums,
    float_operators,
)
"""In the order in which they run; each rewrites a captured program in place and returns how many places it changed."""
