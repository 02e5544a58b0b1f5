"""Imports that a user's recipe names as ``module:callable``, and the code that such an import stands for."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.core import EdgewrightError, RecipeError, did_you_mean, first_line
from pipeline.core.packages import broken_torchvision

OURS = frozenset({"pipeline", "targets"})
"""Our own packages; where a recipe names such a module, and its folder has one, the user's is meant."""


def import_callable(name: str, root: Path = Path()) -> Callable[..., Any]:
    """Import ``module:callable`` or ``module:Class.method``.

    The recipe's folder and the working directory are importable. Installed packages win over files of the same name
    there, so that a stray ``onnxruntime.py`` replaces nothing.

    Raises:
        RecipeError: The module does not import, or has no such callable.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = _import(module_name, root)
    except (Exception, SystemExit) as error:  # the user's module may fail in any way; say which line and how
        if isinstance(error, ModuleNotFoundError) and error.name in parents(module_name):
            raise _no_module(name, error.name) from None
        if (refusal := broken_torchvision(error)) is not None:
            raise refusal from error
        fix = "correct that line, or install what it imports"
        raise RecipeError(f"importing it failed: {failure_of(error)}", where=name, fix=fix) from error
    found: Any = module
    for part in attribute.split("."):
        owner = found
        try:
            found = getattr(owner, part)
        except AttributeError:
            public = [known for known, value in vars(owner).items() if _is_offered(known, value)]
            what = f"module {module_name!r}" if owner is module else f"{getattr(owner, '__name__', part)!r}"
            raise RecipeError(
                f"{what} has no {part!r}; {did_you_mean(part, public)}",
                where=name,
                fix="name a function or class of that module",
            ) from None
    if not callable(found):
        raise RecipeError(f"{attribute!r} is not callable", where=name, fix="name a function or class of that module")
    return found  # type: ignore[no-any-return]  # checked by callable(), which mypy does not follow


def require_module(name: str, root: Path = Path()) -> None:
    """Refuse ``module:callable`` where there is no such module, without importing anything.

    Only its top is looked for: what is below it is known when it is imported.

    Raises:
        RecipeError: As `import_callable` raises it.
    """
    top = name.partition(":")[0].partition(".")[0]
    own = any((folder / top).is_dir() or (folder / f"{top}.py").is_file() for folder in (root, Path.cwd()))
    if not own and importlib.util.find_spec(top) is None:
        raise _no_module(name, top)


def _no_module(name: str, missing: str | None) -> RecipeError:
    module, _, attribute = name.partition(":")
    fix = f"write {module.removesuffix('.py')}:{attribute}" if module.endswith(".py") else _MODULE_FIX
    return RecipeError(f"there is no module {missing!r}", where=name, fix=fix)


def _is_offered(name: str, value: object) -> bool:
    return not name.startswith("_") and (callable(value) or isinstance(value, classmethod | staticmethod))


def call(
    name: str, kwargs: Mapping[str, Any], root: Path = Path(), *, field: str, refusal: type[EdgewrightError]
) -> Any:
    """What ``module:callable`` returns for these arguments.

    Args:
        field: Where in the recipe the arguments are, for the messages.
        refusal: The class of the error where the call fails.

    Raises:
        RecipeError: The module does not import, or has no such callable.
        EdgewrightError: The callable does not take the arguments, or fails; the message names the user's own line.
    """
    function = import_callable(name, root)
    _require_arguments(function, name, kwargs, field, refusal)
    try:
        return function(**kwargs)
    except EdgewrightError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may fail in any way
        raise refusal(
            f"it failed: {failure_of(error)}", where=name, fix=f"correct that line, or {field} in the recipe"
        ) from error


def _require_arguments(
    function: Callable[..., Any], name: str, kwargs: Mapping[str, Any], field: str, refusal: type[EdgewrightError]
) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin may have none: the call itself will tell
        return
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        taken = [known for known, parameter in signature.parameters.items() if parameter.kind in kinds]
        unknown = next((key for key in kwargs if key not in taken), None)
        hint = "" if unknown is None else f"; {did_you_mean(unknown, taken)}"
        raise refusal(
            f"cannot be called with these kwargs: {error}{hint}", where=name, fix=f"correct {field} in the recipe"
        ) from None


_MODULE_FIX = "correct its name, put the module beside the recipe, or run from its folder"


def parents(module: str) -> list[str]:
    """``a.b.c`` and the packages that it is in.

    >>> parents("a.b")
    ['a', 'a.b']
    """
    parts = module.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def failure_of(error: BaseException) -> str:
    """What a user's code raised, and on which line of which file.

    >>> try:
    ...     {}["absent"]
    ... except KeyError as error:
    ...     print(failure_of(error))
    KeyError: 'absent'
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(Path(frame.filename))]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {_text_of(error)}{place}"


def _text_of(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"exit status {error.code or 0}"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return f"there is no module {error.name!r}"
    return first_line(error) if isinstance(error, Exception) else str(error)


def code_sha256(name: str, root: Path = Path()) -> str:
    """Hash of the code behind ``module:callable``: its module and what that imports from the user's folders, as source,
    and the versions of the packages that these import.
    """
    module_name, _, _ = name.partition(":")
    digest = hashlib.sha256()
    versions: dict[str, str] = {}
    for module in _own_modules(_import(module_name, root)):
        file = Path(str(module.__file__))
        digest.update(file.read_bytes())
        for imported in _imports(module, file):
            package = sys.modules.get(imported.partition(".")[0])
            if package is not None and not _is_own(package):
                versions[package.__name__] = str(getattr(package, "__version__", ""))
    digest.update(repr(sorted(versions.items())).encode())
    return digest.hexdigest()


def _import(name: str, root: Path) -> ModuleType:
    folders = [root.resolve(), Path.cwd()]
    top = name.partition(".")[0]
    if top in OURS:
        for folder in folders:
            if (file := _file_of(name, folder)) is not None and not _is_ours(file):
                return _import_file(name, file)
    for folder in folders:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # behind everything that is installed
    return importlib.import_module(name)


def _file_of(name: str, folder: Path) -> Path | None:
    """The file of a module below a folder."""
    stem = folder.joinpath(*name.split("."))
    return next((file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()), None)


def _import_file(name: str, file: Path) -> ModuleType:
    """Import a file under a name that does not replace our own package."""
    alias = f"_user_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}_{name.replace('.', '_')}"
    if alias not in sys.modules:
        places = [str(file.parent)] if file.name == "__init__.py" else None
        spec = importlib.util.spec_from_file_location(alias, file, submodule_search_locations=places)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[alias] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[alias]
            raise
    return sys.modules[alias]


def _own_modules(start: ModuleType) -> Iterator[ModuleType]:
    """A module and all modules of the user's that it imports, directly or not, in the order of their names."""
    found: dict[str, ModuleType] = {}
    queue = [start]
    while queue:
        module = queue.pop()
        if module.__name__ in found or not _is_own(module):
            continue
        found[module.__name__] = module
        queue += [sys.modules[name] for name in _imports(module, Path(str(module.__file__))) if name in sys.modules]
    yield from (found[name] for name in sorted(found))


def _imports(module: ModuleType, file: Path) -> Iterator[str]:
    """The modules that a file's import statements may name."""
    package = module.__name__ if file.name == "__init__.py" else module.__name__.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from parents(name)


def _is_own(module: ModuleType) -> bool:
    """Whether a module is a Python file of the user's, not of an installed package and not ours."""
    file = getattr(module, "__file__", None)
    return file is not None and file.endswith(".py") and _is_users(Path(file)) and not _is_ours(Path(file))


def _is_users(file: Path) -> bool:
    installed = {Path(sys.prefix).resolve(), Path(sys.base_prefix, "lib").resolve()}
    ours = Path(__file__).parents[1]
    return file.suffix == ".py" and not any(file.resolve().is_relative_to(folder) for folder in (*installed, ours))


def _is_ours(file: Path) -> bool:
    project = Path(__file__).parents[2]
    return any(file.resolve().is_relative_to(project / package) for package in OURS)
