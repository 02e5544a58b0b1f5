"""A network that works on the samples that are tried first, and fails or changes on a later one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.core import StageError
from pipeline.execution.apply import run
from pipeline.recipe import parse_recipe
from tests.pipeline.conftest import Project

LATE = """

class Late(nn.Sequential):
    def forward(self, x):
        y = super().forward(x)
        if float(x.max()) > 0.999:
            {}
        return y


def late(**kwargs):
    return Late(*convnet(**kwargs))
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise KeyError('bright')", ("sample 37: forward fails: KeyError: 'bright' (", ", line 17)")),
        ("return y[:, :3]", ("sample 256: forward gives outputs [(3,)] with its batch", ", and [(4,)] before")),
    ],
)
def test_error_names_the_sample_when_forward_fails_late(
    project: Project, code: str, expected: tuple[str, str], tmp_path: Path
) -> None:
    module = next(project.folder.glob("network_*.py"))
    module.write_text(module.read_text() + LATE.format(code))
    project.recipe["model"]["factory"] = f"{module.stem}:late"
    project.recipe["stages"] = []
    with np.load(project.folder / "test.npz") as stored:
        arrays = {name: np.concatenate([stored[name]] * 2) for name in stored.files}
    arrays["images"] = np.minimum(arrays["images"], 250)
    arrays["images"][37 if "raise" in code else 300] = 255
    np.savez(project.folder / "test.npz", **arrays)
    with pytest.raises(StageError) as caught:
        run(parse_recipe(project.recipe), tmp_path / "out", root=project.folder)
    assert all(part in caught.value.problem for part in expected)
    assert caught.value.where == str(project.folder / "test.npz")
