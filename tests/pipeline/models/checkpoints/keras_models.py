"""Saves models of Keras and what they compute: ``python keras_models.py FOLDER``, in a process of its own.

Keras chooses its backend once in a process, and is slow to import.
"""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
from keras import layers


def images() -> keras.Model:
    """Every layer of images and sequences, on an odd and an even size."""
    image = keras.Input((9, 8, 3), name="image")
    body = keras.Sequential(
        [
            layers.Conv2D(8, 3, padding="same", strides=2, activation="relu"),
            layers.BatchNormalization(scale=False),
            layers.Conv2D(8, 4, padding="same", use_bias=False),
        ],
        name="body",
    )
    x = body(layers.Normalization(mean=[1.0, 2, 3], variance=[1.0, 4, 9])(image))
    z = layers.SeparableConv2D(8, 3, padding="same", activation="swish")(x)
    x = layers.Add()([x, z]) * 0.5 + z
    gate = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(x))
    x = layers.Multiply()([x, layers.Dense(8, activation="hard_sigmoid")(gate)])
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    x = layers.AveragePooling2D(2, 2, padding="same")(x)
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same")(x)
    x = layers.Conv2DTranspose(6, 2, strides=3)(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    x = layers.LeakyReLU()(layers.PReLU(shared_axes=[1, 2])(x))
    x = layers.UpSampling2D(2)(layers.LayerNormalization()(x))
    x = layers.Cropping2D(((1, 0), (0, 1)))(layers.ZeroPadding2D(((1, 0), (2, 1)))(x))
    both = layers.Softmax()(layers.Concatenate()([x, x]))
    flat = layers.Dense(12, activation="gelu")(layers.Dropout(0.5)(layers.Flatten()(x)))
    steps = layers.Conv1D(5, 3, padding="same", activation="elu")(layers.Reshape((4, 3))(flat))
    steps = layers.LSTM(3, return_sequences=True)(layers.BatchNormalization()(steps))
    steps = layers.Bidirectional(layers.GRU(2, return_sequences=True))(steps)
    last = layers.Concatenate()([flat, layers.GRU(3)(steps), layers.Bidirectional(layers.LSTM(2))(steps)])
    turned = layers.Permute((2, 1))(layers.Reshape((4, 3))(flat))
    return keras.Model(image, [both, layers.Dense(3, activation="softmax")(last), turned])


def tokens() -> keras.Model:
    ids = keras.Input((7,), dtype="int32", name="ids")
    return keras.Sequential([ids, layers.Embedding(20, 8), layers.GlobalAveragePooling1D(), layers.Dense(4)])


def network(name: str) -> keras.Model:
    return getattr(keras.applications, name)(weights=None, classes=10, input_shape=(64, 64, 3))


def with_random_statistics(model: keras.Model) -> keras.Model:
    numbers = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith(("variance", "gamma")):
            variable.assign(numbers.uniform(0.5, 2, variable.shape))
        elif variable.path.endswith(("mean", "beta", "bias")):
            variable.assign(numbers.normal(0, 0.1, variable.shape))
    return model


def save(folder: Path) -> None:
    numbers = np.random.default_rng(1)
    models = {"images": images(), "tokens": tokens()}
    models |= {name: network(name) for name in ("MobileNetV2", "ResNet50", "EfficientNetB0")}
    for name, model in models.items():
        with_random_statistics(model).save(folder / f"{name}.keras")
        shape = (2, *model.inputs[0].shape[1:])
        x = (
            numbers.integers(0, 20, shape).astype("int32")
            if name == "tokens"
            else numbers.normal(size=shape).astype("f4")
        )
        outputs = model(x, training=False)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        arrays = {f"output_{index}": keras.ops.convert_to_numpy(value) for index, value in enumerate(outputs)}
        np.savez(folder / f"{name}.npz", x=x, **arrays)


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    save(Path(sys.argv[1]))
