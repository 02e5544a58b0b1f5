"""Makes the packages that come from TensorFlow: ``python tests/targets/coreml/packages/make.py``, a few seconds.

They are kept because TensorFlow and its converter take long to load. Beside each stands what TensorFlow computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct  # before TensorFlow is hidden by the target
import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
GENERATOR = np.random.default_rng(0)


def weights(*shape: int) -> Any:
    return tf.constant((GENERATOR.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32))


KERNELS = [weights(3, 3, 3, 8), weights(5, 5, 8, 1), weights(1, 1, 8, 12), weights(3, 3, 6, 12), weights(6, 10)]


@tf.function(input_signature=[tf.TensorSpec((2, 13, 17, 3), tf.float32, name="image")])
def convolutions(image: Any) -> Any:
    """TensorFlow's own padding and layout: strided "same" convolutions, depthwise, transposed, pooling and resizing."""
    x = tf.nn.relu6(tf.nn.conv2d(image, KERNELS[0], 2, "SAME") + 0.1)
    x = tf.nn.depthwise_conv2d(x, KERNELS[1], [1, 2, 2, 1], "SAME")
    x = tf.nn.leaky_relu(tf.nn.conv2d(x, KERNELS[2], 1, "VALID"), 0.2)
    x = tf.nn.avg_pool2d(x, 3, 2, "SAME")
    x = tf.nn.conv2d_transpose(x, KERNELS[3], (2, 4, 6, 6), 2, "SAME")
    x = tf.image.resize(x, (7, 9), "bilinear")
    x = tf.nn.max_pool2d(tf.nn.space_to_depth(tf.pad(x, [[0, 0], [1, 0], [0, 1], [0, 0]]), 2), 2, 1, "VALID")
    x = tf.reduce_mean(x, [1, 2])[:, ::4]
    return tf.nn.softmax(tf.matmul(x, KERNELS[4]))


@tf.function(input_signature=[tf.TensorSpec((3, 6), tf.float32, name="start")])
def loop(start: Any) -> Any:
    """A while loop that collects its states in a list, a gather, a scatter and a sort."""
    states = tf.TensorArray(tf.float32, size=4, element_shape=(3, 6))
    state = start
    for index in tf.range(4):
        state = tf.tanh(tf.matmul(state, KERNELS[4][:, :6]) + start)
        states = states.write(index, state)
    joined = tf.concat([states.stack()[1:], tf.expand_dims(start, 0)], 0)
    best, order = tf.math.top_k(tf.reduce_sum(joined, 2), 2)
    picked = tf.gather(tf.transpose(best), [1, 0, 1])
    return tf.tensor_scatter_nd_add(picked, [[0], [2]], tf.cast(tf.transpose(order)[:2], tf.float32))


def keep(name: str, function: Any, given: str, target: Any) -> None:
    concrete = function.get_concrete_function()
    (spec,) = function.input_signature
    array = GENERATOR.standard_normal(spec.shape).astype(np.float32)
    model = ct.convert(
        [concrete],
        source="tensorflow",
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    model.save(str(HERE / f"{name}.mlpackage"))
    np.savez(HERE / f"{name}.npz", **{given: array}, expected=function(tf.constant(array)).numpy())


if __name__ == "__main__":
    keep("tensorflow_convolutions", convolutions, "image", ct.target.iOS15)
    keep("tensorflow_loop", loop, "start", ct.target.iOS17)
