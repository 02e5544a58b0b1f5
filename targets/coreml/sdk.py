"""coremltools, imported without its noise and without TensorFlow."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.core.logs import silenced

if TYPE_CHECKING:
    from torch import fx


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, version warnings and log lines about coremltools, not about the user's model.

    Errors are raised, so nothing that matters is lost.
    """
    with silenced("coremltools", "torchao", "torch.utils._pytree"):
        yield


def coremltools() -> Any:
    """The coremltools module.

    Where TensorFlow is not loaded yet, coremltools is kept from loading it: that takes seconds and prints to the
    terminal from C++, and only the conversion of TensorFlow models needs it.
    """
    if "coremltools" not in sys.modules:
        hide_tensorflow = "tensorflow" not in sys.modules
        if hide_tensorflow:
            sys.modules["tensorflow"] = None  # type: ignore[assignment]  # makes `import tensorflow` an ImportError
        try:
            with quiet():
                importlib.import_module("coremltools")
        finally:
            if hide_tensorflow:
                del sys.modules["tensorflow"]
    return sys.modules["coremltools"]


def is_known(node: fx.Node) -> bool:
    """Whether the converter has a rule for what a node of an exported program calls."""
    coremltools()
    from coremltools.converters.mil.frontend.torch.torch_op_registry import is_torch_fx_node_supported

    return bool(is_torch_fx_node_supported(node))
