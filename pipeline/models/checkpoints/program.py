"""A ``torch.export`` program in a ``.pt2`` file, which holds its own code and weights."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.models import exported_program


def read_program(path: Path, *, trust: bool = False) -> torch.export.ExportedProgram:
    """The program in a file.

    Args:
        trust: Read it with torch, which unpickles objects and evaluates code in it. Without, nothing of it runs.

    Raises:
        CheckpointError: The file is damaged, or no such program, or holds something that could run code.
    """
    if not trust:
        program, _ = exported_program.read_program(path)
        return program
    try:
        return torch.export.load(path)
    except Exception as error:  # a damaged archive fails in zipfile, JSON or torch, whichever meets it first
        raise exported_program.unreadable(path, error) from error
