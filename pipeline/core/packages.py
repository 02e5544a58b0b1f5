"""Installed packages that do not fit each other."""

from __future__ import annotations

import traceback
from importlib.metadata import PackageNotFoundError, version

from pipeline.core import EdgewrightError, first_line


def broken_torchvision(error: BaseException) -> EdgewrightError | None:
    """The error to show where an import failed in a torchvision that was built for another torch; else None.

    torchmetrics and many users' networks import torchvision wherever it is installed.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, Exception) or not (
        "torchvision::" in str(error) or (frames and "/torchvision/" in frames[-1].filename.replace("\\", "/"))
    ):
        return None
    return EdgewrightError(
        f"torchvision {_version('torchvision')} does not work beside torch {_version('torch')}: {first_line(error)}",
        where="torchvision",
        fix="install the torchvision that was built for this torch, or remove it: pip uninstall torchvision",
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(of an unknown version)"
