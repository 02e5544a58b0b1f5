"""An ``.mlpackage`` as it is, whoever wrote it: in Core ML on macOS, in the reference interpreter elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import TargetError
from pipeline.target import Input
from targets.coreml.interpreter import Interpreter
from targets.coreml.session import NUMERIC, as_array, image_names, read_interface

if TYPE_CHECKING:
    from pipeline.target import Array, Session


class CoremlFile:
    """See `pipeline.target.OpenedFile`. Images are ``(N, C, H, W) uint8``.

    Raises:
        TargetError: The package cannot be read, or the interpreter lacks one of its operators.
    """

    def __init__(self, session: Session, path: Path) -> None:
        lowered = read_interface(path)
        self._session = session
        self.outputs = lowered.outputs
        self.inputs = tuple(
            Input(name=spec.name, dtype=spec.dtype, shape=(lowered.batch_size, *spec.shape)) for spec in lowered.inputs
        )

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        return self._session.run(inputs)


class InterpretedFile:
    """The same in the reference interpreter, which takes every shape that the program allows."""

    def __init__(self, path: Path) -> None:
        self._interpreter = Interpreter(path, precision="float16")
        description = self._interpreter.description
        images = image_names(description)
        self.inputs = tuple(
            Input(
                name=name,
                dtype="uint8" if name in images else str(form.held).removeprefix("torch."),
                shape=form.shape,
            )
            for name, form in self._interpreter.inputs.items()
        )
        self.outputs = tuple(entry.name for entry in description.output if entry.type.WhichOneof("Type") in NUMERIC)
        missing = [name for name in self.outputs if name not in self._interpreter.outputs]
        if missing:
            raise TargetError(f"promises an output {missing[0]!r} that nothing computes", where=str(path))

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        names = [taken.name for taken in self.inputs]
        outputs = self._interpreter.run(dict(zip(names, inputs, strict=True)))
        return tuple(as_array(outputs[name]) for name in self.outputs)
