"""Deployment targets, each imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.core import TargetError
from pipeline.target import Target

TARGETS = {"onnx": "OnnxTarget", "coreml": "CoremlTarget", "tflite": "TfliteTarget"}


def get(name: str, config: Any = None) -> Target:
    """The target of that name, with its options or their defaults; its SDK is not imported yet.

    Raises:
        TargetError: There is no such target.
    """
    if name not in TARGETS:
        raise TargetError(f"there is no target {name!r}", fix=f"use one of {', '.join(TARGETS)}")
    target: Target = getattr(importlib.import_module(f"targets.{name}"), TARGETS[name])(config)
    return target
