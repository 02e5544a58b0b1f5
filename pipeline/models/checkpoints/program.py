"""A ``torch.export`` program in a ``.pt2`` file, which holds its own code and weights."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.core import CheckpointError, first_line


def read_program(path: Path) -> torch.export.ExportedProgram:
    """The program in a file.

    Raises:
        CheckpointError: The file is damaged, or no such program.
    """
    try:
        return torch.export.load(path)
    except Exception as error:  # a damaged archive fails in zipfile, JSON or torch, whichever meets it first
        raise CheckpointError(
            f"is not a torch.export program: {first_line(error)}",
            where=str(path),
            fix="write it with torch.export.save, by this version of torch",
        ) from error
