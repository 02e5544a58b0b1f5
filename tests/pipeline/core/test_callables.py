from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core import RecipeError
from pipeline.core.callables import code_sha256, import_callable


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A user's folder; modules imported from it are forgotten afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


def test_installed_packages_win_when_a_file_has_their_name(folder: Path) -> None:
    write(folder, sympy="raise SystemExit('shadowed')", own_net="import sympy\ndef net(): return sympy.__name__")
    for module in [name for name in sys.modules if name.partition(".")[0] == "sympy"]:
        assert "site-packages" in str(sys.modules[module].__file__)
    assert import_callable("own_net:net", folder)() == "sympy"
    write(folder, antigravity_free="def net(): return 1")
    assert sys.path.index(str(folder)) == len(sys.path) - 1 or sys.path[-2] == str(folder)


def test_a_users_module_is_meant_when_it_has_the_name_of_one_of_our_packages(folder: Path) -> None:
    write(folder, pipeline="def net(): return 'mine'", targets="def net(): return 'mine, too'")
    assert import_callable("pipeline:net", folder)() == "mine"
    assert import_callable("targets:net", folder)() == "mine, too"
    import pipeline

    assert "site-packages" in str(pipeline.__file__) or Path(str(pipeline.__file__)).name == "__init__.py"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import sys; sys.exit(3)", "SystemExit: exit status 3 (broken_module.py, line 1)"),
        ("\n\n1 / 0", "ZeroDivisionError: division by zero (broken_module.py, line 3)"),
        ("def net(:", "SyntaxError"),
        ("import not_there_at_all", "there is no module 'not_there_at_all'"),
        ("net = 3", "'net' is not callable"),
        ("", "has no 'net'"),
    ],
)
def test_import_names_the_users_line_when_the_module_fails(folder: Path, source: str, problem: str) -> None:
    write(folder, broken_module=source)
    with pytest.raises(RecipeError) as caught:
        import_callable("broken_module:net", folder)
    assert problem in str(caught.value)
    sys.modules.pop("broken_module", None)


def test_code_changes_when_the_module_or_anything_it_imports_from_the_folder_changes(folder: Path) -> None:
    (folder / "parts").mkdir()
    write(
        folder, net_of_parts="from parts.block import width\nimport torch\ndef net(): return width", unrelated="x = 1"
    )
    write(folder / "parts", __init__="", block="from . import deep\nwidth = deep.w", deep="w = 8")
    import_callable("net_of_parts:net", folder)

    def changed(file: Path, text: str) -> bool:
        before = code_sha256("net_of_parts:net", folder)
        kept = file.read_text()
        file.write_text(text)
        found = code_sha256("net_of_parts:net", folder)
        file.write_text(kept)
        return found != before

    assert changed(folder / "net_of_parts.py", "from parts.block import width\ndef net(): return 2 * width")
    assert changed(folder / "parts" / "deep.py", "w = 9")
    assert not changed(folder / "unrelated.py", "x = 2")


def test_code_changes_when_an_installed_package_has_another_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, net_with_torch="import torch\ndef net(): ...")
    before = code_sha256("net_with_torch:net", folder)
    monkeypatch.setattr("torch.__version__", "1.0")
    assert code_sha256("net_with_torch:net", folder) != before
