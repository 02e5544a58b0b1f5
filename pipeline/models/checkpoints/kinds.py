"""What kind of file a checkpoint is, by its content: files of other frameworks are refused by their names."""

from __future__ import annotations

import zipfile
from pathlib import Path

from pipeline.core import CheckpointError
from pipeline.models.checkpoints.weights_file import SAVE

_HEAD_BYTES = 32
_PYTORCH = (
    "give the PyTorch network that it was made from: model: {factory: module:callable, checkpoint: its state dict}, "
    "or a program that torch.export.save wrote"
)
_NO_PYTORCH = "write the network in PyTorch, copy the weights into it, and give its factory and state dict"

_KERAS_3 = "load it with Keras 3 and save it again: model.save('model.keras'); or give a PyTorch network"
_NETWORK = "and edgewright starts from a PyTorch network"

_OTHERS = {
    "hdf5": (f"is an HDF5 file, as older versions of Keras write them, {_NETWORK}", _KERAS_3),
    "saved model": (f"is a TensorFlow SavedModel, {_NETWORK}", _NO_PYTORCH),
    "tensorflow": (f"is a TensorFlow checkpoint, {_NETWORK}", _NO_PYTORCH),
    "transformers": (
        "is a folder that save_pretrained wrote",
        "name it in model: {huggingface: …}",
    ),
    "onnx": (f"is an ONNX model, {_NETWORK}", _PYTORCH),
    "tflite": (f"is a TFLite model, {_NETWORK}", _PYTORCH),
    "core ml": (f"is a Core ML model, {_NETWORK}", _PYTORCH),
    "openvino": (f"is an OpenVINO model, {_NETWORK}", _PYTORCH),
    "tensorrt": (f"is a TensorRT engine, {_NETWORK}", _PYTORCH),
    "gguf": (f"is a GGUF file of quantized weights, {_NETWORK}", _PYTORCH),
    "numpy": ("is a NumPy file, not a checkpoint of PyTorch", SAVE),
    "tar": ("is a packed archive", "unpack it, and give the file of weights that is in it"),
}
"""Per kind, what is wrong with it and what to give instead."""

_ENDINGS = {".onnx": "onnx", ".ort": "onnx", ".tflite": "tflite", ".mlmodel": "core ml", ".engine": "tensorrt"}
_STARTS = {
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"GGUF": "gguf",
    b"\x93NUMPY": "numpy",
    b"ftrt": "tensorrt",
    b"\x1f\x8b": "tar",
    b"<?xml": "openvino",
}
_ONNX_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42"
"""What may follow ``ir_version`` in an ONNX model: the tags of its other fields."""


def kind_of(path: Path) -> str | None:
    """A key of the table above, ``torchscript``, ``keras`` or ``program``; None for any other file or folder."""
    try:
        if path.is_dir():
            return _kind_of_folder(path)
        if not path.is_file():
            return None
        with path.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    except OSError:
        return None
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head[4:8] == b"TFL3":
        return "tflite"
    if len(head) > 2 and head[0] == 8 and 0 < head[1] < 32 and head[2] in _ONNX_FIELDS:
        return "onnx"
    known = next((kind for start, kind in _STARTS.items() if head.startswith(start)), None)
    if path.name.endswith((".ckpt.index", ".ckpt.meta")) or ".data-00000-of-" in path.name:
        return "tensorflow"
    return "saved model" if path.name == "saved_model.pb" else known or _ENDINGS.get(path.suffix)


def require_known(path: Path) -> None:
    """Refuse a file of another framework.

    Raises:
        CheckpointError: Says what it is, and what to give instead.
    """
    kind = kind_of(path)
    if kind in _OTHERS:
        problem, fix = _OTHERS[kind]
        raise CheckpointError(problem, where=str(path), fix=fix)


def require_weights(path: Path) -> None:
    """Refuse a file that no factory can be filled with.

    Raises:
        CheckpointError: Says what it is, and what to give instead.
    """
    require_known(path)
    kind = kind_of(path)
    if kind == "torchscript":
        raise CheckpointError(
            "is a TorchScript archive, which holds a network of its own", where=str(path), fix="remove model.factory"
        )
    if kind == "keras":
        raise CheckpointError(
            "is a Keras model, which holds a network of its own", where=str(path), fix="remove model.factory"
        )
    if kind == "program":
        raise CheckpointError(
            "is a torch.export program, which holds a network of its own",
            where=str(path),
            fix="remove model.factory, and let the file's name end in .pt2",
        )


def _kind_of_folder(path: Path) -> str | None:
    if (path / "saved_model.pb").is_file():
        return "saved model"
    if (path / "config.json").is_file():
        return "transformers"
    return "core ml" if (path / "Manifest.json").is_file() or path.suffix == ".mlmodelc" else None


def _kind_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None  # damaged: the reader tells
    if "config.json" in names:
        return "keras"
    if any(name.endswith("/constants.pkl") for name in names):
        return "torchscript"
    if any(name.endswith("/models/model.json") for name in names) or "serialized_exported_program.json" in names:
        return "program"
    return "numpy" if names and all(name.endswith(".npy") for name in names) else None
