"""What the deployment CPU can do with integers."""

from __future__ import annotations

import platform
from typing import Literal

Cpu = Literal["x86", "arm"]


def deployment_cpu(wanted: Cpu | None) -> Cpu:
    """The family that the recipe names, or this machine's."""
    if wanted is not None:
        return wanted
    return "arm" if platform.machine().lower() in ("arm64", "aarch64") else "x86"
