"""The ONNX Runtime target: QDQ graphs that run as integer kernels. Only this package imports onnx and onnxruntime."""

from targets.onnx.target import OnnxTarget

__all__ = ["OnnxTarget"]
