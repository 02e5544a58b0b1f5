"""Imports that a user's recipe names as ``module:callable``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.core import RecipeError


def import_callable(name: str, root: Path = Path()) -> Callable[..., Any]:
    """Import ``module:callable``; the working directory and the recipe's folder are importable, as with pytest.

    Raises:
        RecipeError: The module does not import, or has no such callable.
    """
    module_name, _, attribute = name.partition(":")
    for folder in (root.resolve(), Path.cwd()):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise RecipeError(f"there is no module {error.name!r}", where=name, fix="run from its folder") from None
    except AttributeError:
        raise RecipeError(f"module {module_name!r} has no {attribute!r}", where=name) from None
    except Exception as error:  # the user's module may fail in any way; say which module and how
        raise RecipeError(f"importing it failed: {type(error).__name__}: {error}", where=name) from error
    if not callable(found):
        raise RecipeError(f"{attribute!r} is not callable", where=name)
    return found  # type: ignore[no-any-return]  # checked by callable(), which mypy does not follow
