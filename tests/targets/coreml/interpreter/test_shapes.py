"""Operators that reduce, move, make, order and index elements, against NumPy and onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import TargetError
from targets.coreml.interpreter.operators import indexing, layout
from tests.targets.coreml.interpreter.mil import Array, Case, floats, integers, mb, onnx_runs, run

X = floats(2, 3, 4)
POSITIVE = floats(2, 3, 4, low=0.1, high=5.0)
IMAGE = floats(4, 8, 4, 6)


def _reduce(name: str, oracle: Any, x: Array = X) -> list[Case]:
    build = getattr(mb, name.split(" ")[0])
    return [
        Case(f"{name} of one axis", lambda x: build(x=x, axes=[-1]), lambda x: oracle(x, axis=-1), (x,)),
        Case(
            f"{name} of two axes kept",
            lambda x: build(x=x, axes=[0, 2], keep_dims=True),
            lambda x: oracle(x, axis=(0, 2), keepdims=True),
            (x,),
        ),
    ]


def _case(name: str, build: Any, oracle: Any, *inputs: Array, opset: str = "iOS18") -> Case:
    return Case(name, build, oracle, inputs or (X,), opset=opset)


def _scatter(name: str, mode: str, reduce: Any) -> Case:
    def oracle(data: Array, updates: Array) -> Array:
        result = data.copy()
        for position, index in enumerate([2, 0, 2]):
            result[:, index] = reduce(result[:, index], updates[:, position])
        return result

    def build(data: Any, updates: Any) -> Any:
        return mb.scatter(data=data, indices=np.array([2, 0, 2], np.int32), updates=updates, axis=1, mode=mode)

    return Case(name, build, oracle, (X, floats(2, 3, 4, seed=1, low=0.5, high=2.0)))


def _block_order(x: Array, b: int) -> Array:
    """``depth_to_space`` written pixel by pixel."""
    n, c, h, w = x.shape
    out = np.zeros((n, c // b**2, h * b, w * b), np.float32)
    for i in range(b):
        for j in range(b):
            out[:, :, i::b, j::b] = x[:, (i * b + j) * (c // b**2) : (i * b + j + 1) * (c // b**2)]
    return out


def _space_to_batch(x: Array) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    return np.concatenate([padded[:, :, i::2, j::3] for i in range(2) for j in range(3)])


def _batch_to_space(x: Array) -> Array:
    n = x.shape[0] // 4
    out = np.zeros((n, x.shape[1], x.shape[2] * 2, x.shape[3] * 2), np.float32)
    for i in range(2):
        for j in range(2):
            out[:, :, i::2, j::2] = x[(i * 2 + j) * n : (i * 2 + j + 1) * n]
    return out[:, :, 1:, :-1]


def _reverse_sequence(x: Array) -> Array:
    result = x.copy()
    for row, length in enumerate([1, 3, 4]):
        result[:, row, :length] = x[:, row, :length][:, ::-1]
    return result


INDEX = np.array([[1, 0], [2, 2]], np.int32)

CASES = [
    *_reduce("reduce_sum", np.sum),
    *_reduce("reduce_mean", np.mean),
    *_reduce("reduce_max", np.max),
    *_reduce("reduce_min", np.min),
    *_reduce("reduce_prod", np.prod),
    *_reduce("reduce_l1_norm", lambda x, **kw: np.abs(x).sum(**kw)),
    *_reduce("reduce_l2_norm", lambda x, **kw: np.sqrt((x**2).sum(**kw))),
    *_reduce("reduce_sum_square", lambda x, **kw: (x**2).sum(**kw)),
    *_reduce("reduce_log_sum", lambda x, **kw: np.log(x.sum(**kw)), POSITIVE),
    *_reduce("reduce_log_sum_exp", lambda x, **kw: np.log(np.exp(x).sum(**kw))),
    _case("reduce_sum of all", lambda x: mb.reduce_sum(x=x, keep_dims=True), lambda x: x.sum(keepdims=True)),
    _case("reduce_sum of integers", lambda x: mb.reduce_sum(x=x, axes=[1]), lambda x: x.sum(1), integers(2, 5)),
    _case("reduce_argmax", lambda x: mb.reduce_argmax(x=x, axis=1), lambda x: x.argmax(1)),
    _case("reduce_argmin", lambda x: mb.reduce_argmin(x=x, axis=-1, keep_dims=True), lambda x: x.argmin(-1)[..., None]),
    _case("shape", lambda x: mb.shape(x=x), lambda x: np.array(x.shape)),
    _case("reshape", lambda x: mb.reshape(x=x, shape=[4, -1]), lambda x: x.reshape(4, 6)),
    _case("reshape keeping a size", lambda x: mb.reshape(x=x, shape=[0, 4, -1]), lambda x: x.reshape(2, 4, 3)),
    _case(
        "reshape counting from the right",
        lambda x: mb.reshape(x=x, shape=[1, 0, -1, 0]),
        lambda x: x.reshape(1, 2, 3, 4),
        opset="iOS17",
    ),
    _case(
        "reshape_like",
        lambda x, y: mb.reshape_like(x=x, ref_tensors=[y, y], begins=[0, 1], ends=[1, 2], end_masks=[False, True]),
        lambda x, _: x.reshape(4, 3, 2),
        X,
        floats(4, 3, 2),
    ),
    _case("expand_dims", lambda x: mb.expand_dims(x=x, axes=[0, -1]), lambda x: x[None, ..., None]),
    _case("squeeze", lambda x: mb.squeeze(x=x, axes=[1]), lambda x: x[:, 0], floats(2, 1, 3, 1)),
    _case("squeeze of all", lambda x: mb.squeeze(x=x), np.squeeze, floats(2, 1, 3, 1)),
    _case("transpose", lambda x: mb.transpose(x=x, perm=[2, 0, -2]), lambda x: x.transpose(2, 0, 1)),
    _case("flatten2d", lambda x: mb.flatten2d(x=x, axis=2), lambda x: x.reshape(6, 4)),
    _case(
        "concat",
        lambda x, y: mb.concat(values=(x, y), axis=-1),
        lambda x, y: np.concatenate([x, y], -1),
        X,
        floats(2, 3, 1),
    ),
    _case("concat of one", lambda x: mb.concat(values=(x,), axis=0), lambda x: x),
    _case(
        "concat interleaved",
        lambda x, y: mb.concat(values=(x, y), axis=1, interleave=True),
        lambda x, y: np.stack([x, y], 2).reshape(2, 6, 4),
        X,
        floats(2, 3, 4, seed=1),
    ),
    _case(
        "stack",
        lambda x, y: mb.stack(values=(x, y), axis=1),
        lambda x, y: np.stack([x, y], 1),
        X,
        floats(2, 3, 4, seed=1),
    ),
    _case("split", lambda x: mb.split(x=x, num_splits=2, axis=-1), lambda x: np.split(x, 2, -1)),
    _case("split unevenly", lambda x: mb.split(x=x, split_sizes=[1, 3], axis=2), lambda x: (x[..., :1], x[..., 1:])),
    _case("tile", lambda x: mb.tile(x=x, reps=[2, 1, 3]), lambda x: np.tile(x, (2, 1, 3))),
    _case(
        "pad",
        lambda x: mb.pad(x=x, pad=[1, 0, 2, 3], constant_val=np.float32(7)),
        lambda x: np.pad(x, ((0, 0), (1, 0), (2, 3)), constant_values=7),
    ),
    _case(
        "pad reflected",
        lambda x: mb.pad(x=x, pad=[2, 1, 3, 2], mode="reflect"),
        lambda x: np.pad(x, ((0, 0), (2, 1), (3, 2)), "reflect"),
    ),
    _case(
        "pad replicated",
        lambda x: mb.pad(x=x, pad=[1, 4], mode="replicate"),
        lambda x: np.pad(x, ((0, 0), (0, 0), (1, 4)), "edge"),
    ),
    _case(
        "slice_by_index",
        lambda x: mb.slice_by_index(x=x, begin=[0, 1, -3], end=[1, 3, -1]),
        lambda x: x[0:1, 1:3, -3:-1],
    ),
    _case(
        "slice_by_index masked, strided, squeezed",
        lambda x: mb.slice_by_index(
            x=x,
            begin=[1, 0, 3],
            end=[0, 0, 0],
            stride=[1, 2, -2],
            begin_mask=[False, True, True],
            end_mask=[False, True, True],
            squeeze_mask=[True, False, False],
        ),
        lambda x: x[1, ::2, ::-2],
    ),
    _case(
        "slice_by_size", lambda x: mb.slice_by_size(x=x, begin=[1, 0, -3], size=[1, -1, 2]), lambda x: x[1:2, :, 1:3]
    ),
    _case(
        "slice_update",
        lambda x, y: mb.slice_update(x=x, update=y, begin=[0, 0, 1], end=[2, 3, 4], stride=[1, 2, 2]),
        lambda x, y: _assigned(x, (slice(0, 2), slice(0, 3, 2), slice(1, 4, 2)), y),
        X,
        floats(2, 2, 2, seed=1),
    ),
    _case("reverse", lambda x: mb.reverse(x=x, axes=[0, 2]), lambda x: x[::-1, :, ::-1]),
    _case("reverse of all", lambda x: mb.reverse(x=x), lambda x: x[::-1, ::-1, ::-1]),
    _case(
        "reverse_sequence",
        lambda x: mb.reverse_sequence(x=x, lengths=np.array([1, 3, 4], np.int32), seq_axis=2, batch_axis=1),
        _reverse_sequence,
    ),
    _case("depth_to_space", lambda x: mb.depth_to_space(x=x, block_size=2), lambda x: _block_order(x, 2), IMAGE),
    _case(
        "space_to_depth",
        lambda x: mb.depth_to_space(x=mb.space_to_depth(x=x, block_size=2), block_size=2),
        lambda x: x,
        IMAGE,
    ),
    _case(
        "pixel_shuffle",
        lambda x: mb.pixel_shuffle(x=x, upscale_factor=2),
        onnx_runs("DepthToSpace", blocksize=2, mode="CRD"),
        IMAGE,
    ),
    _case(
        "pixel_unshuffle",
        lambda x: mb.pixel_shuffle(x=mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)), upscale_factor=2),
        lambda x: x,
        IMAGE,
    ),
    _case(
        "space_to_batch",
        lambda x: mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[1, 1], [0, 0]]),
        _space_to_batch,
        IMAGE,
    ),
    _case(
        "batch_to_space",
        lambda x: mb.batch_to_space(x=x, block_shape=[2, 2], crops=[[1, 0], [0, 1]]),
        _batch_to_space,
        IMAGE,
    ),
    _case(
        "sliding_windows", lambda x: mb.sliding_windows(x=x, axis=2, size=2, stride=2), lambda x: x.reshape(2, 3, 2, 2)
    ),
    _case("fill", lambda x: mb.fill(shape=mb.shape(x=x), value=np.float32(3)), lambda x: np.full(x.shape, 3)),
    _case("fill_like", lambda x: mb.fill_like(ref_tensor=x, value=np.int32(3)), lambda x: np.full(x.shape, 3)),
    _case(
        "range_1d",
        lambda e: mb.range_1d(start=1.0, end=mb.squeeze(x=e), step=0.75),
        lambda _: np.arange(1.0, 4.2, 0.75),
        np.array([4.2], np.float32),
    ),
    _case(
        "one_hot",
        lambda i: mb.one_hot(indices=i, one_hot_vector_size=3, axis=0, on_value=2.0, off_value=-1.0),
        lambda i: np.where(np.arange(3)[:, None, None] == i, 2.0, -1.0),
        INDEX,
    ),
    _case("non_zero", lambda x: mb.non_zero(x=x), lambda x: np.transpose(np.nonzero(x)), integers(3, 4, low=0, high=2)),
    _case("cumsum", lambda x: mb.cumsum(x=x, axis=2), lambda x: x.cumsum(2)),
    _case(
        "cumsum exclusive and reversed",
        lambda x: mb.cumsum(x=x, axis=1, exclusive=True, reverse=True),
        lambda x: onnx_runs("CumSum", exclusive=1, reverse=1)(x, np.array(1)),
    ),
    _case(
        "band_part",
        lambda x: mb.band_part(x=x, lower=1, upper=0),
        lambda x: np.tril(x) - np.tril(x, -2),
        floats(2, 4, 5),
    ),
    _case("band_part of the upper triangle", lambda x: mb.band_part(x=x, lower=0, upper=-1), np.triu, floats(2, 4, 5)),
    _case("argsort", lambda x: mb.argsort(x=x, axis=1), lambda x: np.argsort(-x, 1, kind="stable")),
    _case(
        "argsort ascending",
        lambda x: mb.argsort(x=x, axis=-1, ascending=True),
        lambda x: np.argsort(x, -1, kind="stable"),
    ),
    _case(
        "topk", lambda x: mb.topk(x=x, k=2, axis=2), lambda x: onnx_runs("TopK", outputs=2, axis=2)(x, np.array([2]))
    ),
    _case(
        "topk ascending",
        lambda x: mb.topk(x=x, k=2, axis=1, ascending=True),
        lambda x: onnx_runs("TopK", outputs=2, axis=1, largest=0)(x, np.array([2])),
    ),
    _case(
        "topk without indices",
        lambda x: mb.topk(x=x, k=1, axis=1, return_indices=False),
        lambda x: x.max(1, keepdims=True),
    ),
    _case("gather", lambda x, i: mb.gather(x=x, indices=i, axis=1), lambda x, i: np.take(x, i, 1), X, INDEX),
    _case("gather one element", lambda x: mb.gather(x=x, indices=1, axis=0), lambda x: x[1], floats(4)),
    _case(
        "gather from the end",
        lambda x: mb.gather(x=x, indices=np.array([-1, 0], np.int32), axis=2),
        lambda x: x[..., [-1, 0]],
        opset="iOS16",
    ),
    _case(
        "gather per batch",
        lambda x, i: mb.gather(x=x, indices=i, axis=1, batch_dims=1),
        lambda x, i: np.stack([x[b][i[b]] for b in range(2)]),
        X,
        INDEX,
    ),
    _case(
        "gather_along_axis",
        lambda x, i: mb.gather_along_axis(x=x, indices=i, axis=1),
        lambda x, i: np.take_along_axis(x, i, 1),
        X,
        integers(2, 5, 4, low=0, high=3),
    ),
    _case(
        "gather_nd",
        lambda x, i: mb.gather_nd(x=x, indices=i),
        lambda x, i: onnx_runs("GatherND")(x, i.astype(np.int64)),
        X,
        np.array([[1, 0], [0, 2]], np.int32),
    ),
    _case(
        "gather_nd per batch",
        lambda x, i: mb.gather_nd(x=x, indices=i, batch_dims=1),
        lambda x, i: onnx_runs("GatherND", batch_dims=1)(x, i.astype(np.int64)),
        X,
        np.array([[[1], [0]], [[2], [2]]], np.int32),
    ),
    _scatter("scatter add", "add", np.add),
    _scatter("scatter sub", "sub", np.subtract),
    _scatter("scatter mul", "mul", np.multiply),
    _scatter("scatter div", "div", np.divide),
    _scatter("scatter max", "max", np.maximum),
    _scatter("scatter min", "min", np.minimum),
    _case(
        "scatter update",
        lambda d, u: mb.scatter(data=d, indices=np.array([2, 0], np.int32), updates=u, axis=0, mode="update"),
        lambda d, u: _assigned(d, ([2, 0],), u),
        floats(3, 4),
        floats(2, 4, seed=1),
    ),
    _case(
        "scatter_along_axis",
        lambda d, i, u: mb.scatter_along_axis(data=d, indices=i, updates=u, axis=1, mode="add"),
        lambda d, i, u: onnx_runs("ScatterElements", axis=1, reduction="add", opset=18)(d, i, u),
        X,
        integers(2, 5, 4, low=0, high=3),
        floats(2, 5, 4, seed=1),
    ),
    _case(
        "scatter_nd",
        lambda d, i, u: mb.scatter_nd(data=d, indices=i, updates=u, mode="add"),
        lambda d, i, u: onnx_runs("ScatterND", reduction="add", opset=18)(d, i.astype(np.int64), u),
        X,
        np.array([[1, 0], [0, 2], [1, 0]], np.int32),
        floats(3, 4, seed=1),
    ),
]


def _assigned(x: Array, index: Any, values: Array) -> Array:
    result = x.copy()
    result[index] = values
    return result


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operator_equals_oracle(case: Case) -> None:
    case.check()


def test_cond_takes_the_branch_that_the_predicate_chooses() -> None:
    def build(x: Any) -> Any:
        positive = mb.greater(x=mb.reduce_sum(x=x), y=0.0)
        return mb.cond(pred=positive, _true_fn=lambda: mb.mul(x=x, y=2.0), _false_fn=lambda: mb.sub(x=x, y=1.0))

    for sign in (1.0, -1.0):
        x = np.array([sign, sign], np.float32)
        (got,) = run(build, x)
        np.testing.assert_array_equal(got, x * 2 if sign > 0 else x - 1)


def test_while_loop_and_lists_compute_powers_of_two() -> None:
    def build(x: Any) -> Any:
        powers = mb.make_list(init_length=4, dynamic_length=False, elem_shape=[2], dtype="fp32")

        def body(index: Any, value: Any, kept: Any) -> Any:
            return mb.add(x=index, y=1), mb.mul(x=value, y=2.0), mb.list_write(ls=kept, index=index, value=value)

        _, _, kept = mb.while_loop(_cond=lambda i, *_: mb.less(x=i, y=4), _body=body, loop_vars=(0, x, powers))
        return mb.list_gather(ls=kept, indices=np.arange(4, dtype=np.int32)), mb.list_read(ls=kept, index=3)

    stacked, last = run(build, np.array([1.0, 3.0], np.float32))
    np.testing.assert_array_equal(stacked, [[1, 3], [2, 6], [4, 12], [8, 24]])
    np.testing.assert_array_equal(last, [8, 24])


def test_list_scatter_grows_the_list_when_an_index_lies_behind_its_end() -> None:
    def build(x: Any) -> Any:
        ls = mb.make_list(init_length=1, elem_shape=[2], dtype="fp32")
        ls = mb.list_scatter(ls=ls, indices=np.array([0, 2], np.int32), value=x)
        return mb.list_gather(ls=ls, indices=np.array([0, 1, 2], np.int32)), mb.list_length(ls=ls)

    x = np.array([[1, 2], [3, 4]], np.float32)
    stacked, length = run(build, x)
    np.testing.assert_array_equal(stacked, [[1, 2], [0, 0], [3, 4]])
    assert int(length) == 3


slices = st.tuples(
    st.integers(-6, 6), st.integers(-6, 6), st.sampled_from([-2, -1, 1, 2, 3]), st.booleans(), st.booleans()
)


@given(st.integers(1, 5), st.integers(1, 5), slices, slices)
def test_slice_by_index_equals_numpy(rows: int, columns: int, first: Any, second: Any) -> None:
    x = torch.arange(rows * columns).reshape(rows, columns)
    begin, end, stride, begin_mask, end_mask = (torch.tensor(list(pair)) for pair in zip(first, second, strict=True))
    expected = x.numpy()[tuple(slice(None if bm else b, None if em else e, s) for b, e, s, bm, em in (first, second))]
    got = layout.slice_by_index(x, begin, end, stride, begin_mask, end_mask)
    np.testing.assert_array_equal(got.numpy(), expected)


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6), st.sampled_from(["reflect", "replicate"]))
def test_pad_equals_numpy(amounts: list[int], mode: str) -> None:
    x = torch.arange(60).reshape(3, 4, 5)
    amounts[:2] = [min(amount, 2) for amount in amounts[:2]]  # reflection reaches size - 1
    pairs = tuple(zip(amounts[::2], amounts[1::2], strict=True))
    expected = np.pad(x.numpy(), pairs, "reflect" if mode == "reflect" else "edge")
    np.testing.assert_array_equal(layout.pad(x, torch.tensor(amounts), mode).numpy(), expected)


@pytest.mark.parametrize("index", [3, -4])
def test_gather_refuses_an_index_outside_the_axis(index: int) -> None:
    with pytest.raises(TargetError, match="outside an axis of 3"):
        indexing.gather(torch.arange(3), torch.tensor([index]))
