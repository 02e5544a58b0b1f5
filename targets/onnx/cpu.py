"""What the deployment CPU can do with integers."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Literal

from pipeline.machine.processor import cpu_features
from pipeline.recipe import OnnxConfig


@dataclass(frozen=True, slots=True)
class Cpu:
    """A deployment CPU.

    Attributes:
        family: x86 kernels want uint8 activations, Arm's take int8 as they are.
        saturates: Whether sums of uint8 by int8 products saturate at 16 bits: x86 without VNNI.
    """

    family: Literal["x86", "arm"]
    saturates: bool

    @property
    def encoding(self) -> str:
        """Which integers the file holds, in words for the report."""
        if self.family == "arm":
            return "int8 activations and weights, for Arm kernels"
        if self.saturates:
            return "uint8 activations and weights: uint8 by int8 products saturate on x86 CPUs without VNNI"
        return "uint8 activations and int8 weights, for x86 kernels with VNNI"


def deployment_cpu(config: OnnxConfig) -> Cpu:
    """The CPU that the recipe names, or this machine's where it does not say."""
    family = config.cpu or ("arm" if platform.machine().lower() in ("arm64", "aarch64") else "x86")
    vnni = any("vnni" in feature for feature in cpu_features()) if config.vnni is None else config.vnni
    return Cpu(family, saturates=family == "x86" and not vnni)
