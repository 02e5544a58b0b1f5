"""Execution providers: the accelerators that onnxruntime can hand a graph to, where its build holds them."""

from __future__ import annotations

import onnxruntime

from pipeline.recipe import OnnxProvider
from pipeline.target import Skipped

CPU = "CPUExecutionProvider"
NAMES: dict[OnnxProvider, str] = {
    "cpu": CPU,
    "coreml": "CoreMLExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
DEVICE_OF: dict[OnnxProvider, str] = {
    "cpu": "CPU",
    "coreml": "Apple CPU, GPU and Neural Engine",
    "nnapi": "Android NNAPI",
    "xnnpack": "mobile CPU",
    "qnn": "Qualcomm Hexagon NPU",
    "cuda": "NVIDIA GPU",
    "tensorrt": "NVIDIA GPU",
}
"""https://onnxruntime.ai/docs/execution-providers/"""


def usable(wanted: tuple[OnnxProvider, ...]) -> list[str]:
    """Those of the wanted providers that this build of onnxruntime holds, in order, and the CPU at the end."""
    here = onnxruntime.get_available_providers()
    return [NAMES[name] for name in wanted if NAMES[name] in here and name != "cpu"] + [CPU]


def unavailable(wanted: tuple[OnnxProvider, ...]) -> tuple[Skipped, ...]:
    """A record for each wanted provider that is not here."""
    here = onnxruntime.get_available_providers()
    return tuple(
        Skipped(
            runtime=f"onnxruntime {onnxruntime.__version__} {NAMES[name]}",
            device=DEVICE_OF[name],
            reason=f"this build of onnxruntime has no {NAMES[name]}; it has {', '.join(here)}",
        )
        for name in wanted
        if NAMES[name] not in here
    )
