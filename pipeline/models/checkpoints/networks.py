"""Networks in a user's Python files: which of them a checkpoint's weights belong to.

Files are looked through without running them. Only files that define things are imported, never one that does its work
when it is imported, as a training script may.
"""

from __future__ import annotations

import ast
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core import CheckpointError, EdgewrightError, first_line
from pipeline.core.callables import import_callable
from pipeline.models.checkpoints.candidates import Stored, fitting, tensors_in
from pipeline.models.checkpoints.state_dict import build
from pipeline.models.checkpoints.weights_file import read_weights

MAX_FILES = 200
SAY = "say which network it is: --factory module:callable"
HARMLESS = frozenset({"getLogger", "device", "Path", "TypeVar", "namedtuple", "partial", "compile", "frozenset", "set"})
"""Calls whose results a file may give names to when it is imported."""
BUILDERS = frozenset({"Sequential", "create_model", "get_model"})
"""What a function calls that builds a network, beside the networks of its file."""
WORK = frozenset({"open", "load", "save", "backward", "step", "download", "fit", "DataLoader", "parse_args", "input"})
"""What a function calls that does more than that."""
_BASES = re.compile(r"(Module|Sequential|Net|Model|Encoder)$")
_CLASSES = re.compile(
    r"(n|num|number|nb|nof)?_?(of_)?(class|classes|labels|outputs|categories|outs?)|out_?(dim|features)?"
)
_CHANNELS = re.compile(r"(in|input|num|n)_?(ch|chans|channels|planes|features|dim)|channels|chans")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Network:
    """A network that fits a checkpoint, and how it is built."""

    factory: str
    module: nn.Module
    kwargs: dict[str, Any] = field(default_factory=dict)


def network_for(weights: Path, factory: str | None, folders: Sequence[Path], root: Path) -> Network:
    """The network that a file of weights belongs to.

    Args:
        factory: What the user has named; without it, the Python files of these folders are looked through.
        folders: They are importable, or below a folder that is.
        root: What imports start from.

    Raises:
        CheckpointError: None fits, or several do; names them.
        RecipeError: The factory cannot be imported.
    """
    stored = list(tensors_in(read_weights(weights)))
    if factory is not None:
        return _built(factory, stored, weights, root)
    names, scripts = _definitions(folders, root)
    fits, refused = [], []
    for name in names:
        try:
            fits.append(_built(name, stored, weights, root))
        except EdgewrightError as error:
            logger.debug("%s does not fit: %s", name, error)
            refused.append(f"{name} ({first_line(ValueError(error.problem))})")
    different = [each for index, each in enumerate(fits) if all(not _alike(each, other) for other in fits[:index])]
    if len(different) == 1:
        return different[0]
    if different:
        problem = f"fits several networks: {', '.join(each.factory for each in different)}"
        raise CheckpointError(problem, where=str(weights), fix=SAY.replace("module:callable", different[0].factory))
    looked = f"; looked at {'; '.join(refused[:5])}" if refused else ""
    passed = f"; {', '.join(scripts[:5])} would run code when imported, and was not looked at" if scripts else ""
    problem = f"holds weights alone, and no network in {_listed(folders)} fits them{looked}{passed}"
    raise CheckpointError(problem, where=str(weights), fix=SAY)


def _listed(folders: Sequence[Path]) -> str:
    return " or ".join(str(folder) for folder in dict.fromkeys(folders))


def _alike(one: Network, other: Network) -> bool:
    """Whether two factories give the same network, as a class and a function that calls it do."""
    return repr(one.module) == repr(other.module)


def _built(factory: str, stored: list[Stored], weights: Path, root: Path) -> Network:
    """The network of a factory, with the arguments that the weights ask for.

    Raises:
        EdgewrightError: It cannot be built, or does not fit.
    """
    function = import_callable(factory, root)
    kwargs = next((kwargs for kwargs in _arguments(function, stored) if _fits(function, kwargs, stored)), {})
    with torch.random.fork_rng(devices=[]):
        module, _ = build(factory, kwargs, weights, root=root)
    return Network(factory, module, kwargs)


def _fits(function: Callable[..., Any], kwargs: dict[str, Any], stored: list[Stored]) -> bool:
    try:
        with torch.random.fork_rng(devices=[]):
            module = function(**kwargs)
        expected = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
        return bool(expected) and len(fitting(stored, expected)) > 0
    except Exception:  # of the user's code, or for arguments that it does not take
        return False


def _arguments(function: Callable[..., Any], stored: list[Stored]) -> Iterator[dict[str, Any]]:
    """Arguments to try: none, then the numbers of classes and of channels that the weights have."""
    yield {}
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return
    matrices = [each.tensor for each in stored if each.tensor.ndim >= 2]
    if not matrices:
        return
    classes = {name: matrices[-1].shape[0] for name in parameters if _CLASSES.fullmatch(name)}
    channels = {name: matrices[0].shape[1] for name in parameters if _CHANNELS.fullmatch(name)}
    yield from (classes, channels, classes | channels)


def _definitions(folders: Sequence[Path], root: Path) -> tuple[list[str], list[str]]:
    """What may be a network in the files of these folders, as ``module:callable``, and files that are scripts."""
    names: list[str] = []
    scripts: list[str] = []
    for folder in dict.fromkeys(each.resolve() for each in folders):
        for file in sorted(folder.glob("*.py"))[:MAX_FILES]:
            tree = _parsed(file)
            if tree is None or not _uses_torch(tree):
                continue
            found = list(_offered(tree))
            if found and _runs_code(tree, folder, {file}):
                scripts.append(file.name)
            elif found:
                names += [f"{_module_of(file, root)}:{name}" for name in found]
    return list(dict.fromkeys(names)), scripts


def _module_of(file: Path, root: Path) -> str:
    """The dotted name by which a file is imported from the recipe's folder or the working directory."""
    for base in (root.resolve(), Path.cwd()):
        if file.is_relative_to(base):
            return ".".join(file.relative_to(base).with_suffix("").parts)
    return file.stem


def _parsed(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _uses_torch(tree: ast.Module) -> bool:
    modules = [name for node in ast.walk(tree) for name in _imported(node)]
    return any(name.partition(".")[0] in ("torch", "torchvision", "timm", "lightning") for name in modules)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def _offered(tree: ast.Module) -> Iterator[str]:
    """Networks, and functions that build one, which need no arguments, or only numbers of classes and of channels."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    networks: set[str] = set()
    for node in classes:  # a base stands above what is built on it
        bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        if bases & networks or any(_BASES.search(base) for base in bases):
            networks.add(node.name)
            starts = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
            if not node.name.startswith("_") and all(_callable_so(start.args, skipped=1) for start in starts):
                yield node.name
    for part in tree.body:
        if isinstance(part, ast.FunctionDef) and not part.name.startswith("_") and _callable_so(part.args, skipped=0):
            called = {
                ast.unparse(each.func).rpartition(".")[2] for each in ast.walk(part) if isinstance(each, ast.Call)
            }
            returns = any(isinstance(each, ast.Return) and each.value is not None for each in ast.walk(part))
            if returns and called & (networks | BUILDERS) and not called & WORK:
                yield part.name


def _callable_so(arguments: ast.arguments, *, skipped: int) -> bool:
    required = [each.arg for each in (*arguments.posonlyargs, *arguments.args)][skipped:]
    required = required[: len(required) - len(arguments.defaults)] if arguments.defaults else required
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    required += [each.arg for each, default in named if default is None]
    return all(_CLASSES.fullmatch(name) or _CHANNELS.fullmatch(name) for name in required)


def _runs_code(tree: ast.Module, folder: Path, seen: set[Path]) -> bool:
    """Whether importing a file does more than define things; also what it imports from its folder."""
    if any(not _defines(node) for node in tree.body):
        return True
    for name in (name for node in tree.body for name in _imported(node)):
        file = folder / f"{name.partition('.')[0]}.py"
        if file.is_file() and file not in seen:
            seen.add(file)
            other = _parsed(file)
            if other is None or _runs_code(other, folder, seen):
                return True
    return False


def _defines(node: ast.stmt) -> bool:
    """Whether a statement at the top of a file only defines, imports, or names a value."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.If):
        return _is_main(node.test) or all(map(_defines, (*node.body, *node.orelse)))
    if isinstance(node, ast.Try):
        handled = [part for handler in node.handlers for part in handler.body]
        return all(map(_defines, (*node.body, *handled, *node.orelse, *node.finalbody)))
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        calls = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
        return all(ast.unparse(call).rpartition(".")[2] in HARMLESS for call in calls)
    return isinstance(node, ast.Pass)


def _is_main(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"
