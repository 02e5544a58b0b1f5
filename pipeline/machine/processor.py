"""The processor, as measurements name it. Never the machine's host name, its user or a path."""

from __future__ import annotations

import platform
from functools import cache

import cpuinfo
import psutil

INTEGER_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def all_cores() -> int:
    """Physical cores."""
    return psutil.cpu_count(logical=False) or 1


@cache
def cpu_name() -> str:
    """The processor's own brand string."""
    return str(cpuinfo.get_cpu_info().get("brand_raw") or platform.processor() or platform.machine())


@cache
def cpu_features() -> tuple[str, ...]:
    """The processor's features that integer kernels depend on."""
    flags = set(cpuinfo.get_cpu_info().get("flags", ()))
    return tuple(feature for feature in INTEGER_FEATURES if feature in flags)
