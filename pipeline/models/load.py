"""Loading: a user's checkpoint, or a module in memory, becomes a `Model`; wrong keys, shapes and classes are named."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from torch.fx import GraphModule

from pipeline.core import CheckpointError, Model, TensorSpec
from pipeline.core.files import require_file
from pipeline.data.samples import SampleSet, examples_of
from pipeline.machine.memory import require_memory
from pipeline.models.checkpoints import huggingface
from pipeline.models.checkpoints.keras_archive import read_keras
from pipeline.models.checkpoints.kinds import kind_of, require_known, require_weights
from pipeline.models.checkpoints.program import read_program
from pipeline.models.checkpoints.state_dict import build
from pipeline.models.checkpoints.torchscript import read_torchscript
from pipeline.models.interface import checked_model
from pipeline.models.modules import copied
from pipeline.models.signature import inputs_of
from pipeline.recipe import ModelSource

logger = logging.getLogger(__name__)

FROM_KERAS = "the network was built from a Keras archive, in layers of torch; images are (N, C, H, W)"
CONVERTED = "the TorchScript archive was converted to a torch.export program, which computes the same"


def load(source: ModelSource, root: Path = Path(), *, samples: SampleSet | None = None) -> Model:
    """Load the FP32 model that a recipe names.

    Args:
        source: A factory with weights, a ``torch.export`` program in a ``.pt2``, a TorchScript or Keras archive, or a
            folder of Hugging Face's transformers.
        root: The folder that relative paths start from.
        samples: What the model is tried on; made-up values where they are left out.

    Raises:
        CheckpointError: The file is missing, unreadable or holds pickled code; its keys or shapes are not the
            factory's; or the model does not run on these samples, or takes or gives what no target can hold.
        RecipeError: The factory cannot be imported.
    """
    opened = open_module(source, root)
    if samples is not None and any(spec.open_sizes for spec in opened.inputs):
        opened = replace(opened, inputs=samples.inputs)
    for spec in opened.inputs:
        if 0 in spec.shape:
            raise CheckpointError(
                f"input {spec.name!r} has open sizes, {spec.written}, and there are no samples that have sizes",
                where=opened.where,
                fix="give samples=…, or sizes",
            )
    examples = () if samples is None else examples_of(samples)
    return checked_model(
        opened.module,
        opened.inputs,
        source.outputs,
        source.classes or (opened.described.classes if opened.described else ()),
        where=opened.where,
        examples=examples,
        notes=opened.notes,
    )


@dataclass(frozen=True, slots=True)
class Opened:
    """A module as it was written, before anything is asked of it.

    Attributes:
        inputs: What it takes.
        where: What it came from, for the messages.
        notes: What was changed to load it.
        described: What its folder says about it, where it is one of Hugging Face's.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    where: str
    notes: tuple[str, ...] = ()
    described: huggingface.Described | None = None


def open_module(source: ModelSource, root: Path = Path()) -> Opened:
    """The module that a recipe names.

    Raises:
        CheckpointError: See `load`.
        RecipeError: The factory cannot be imported.
    """
    if source.huggingface is not None:
        opened = _from_folder(source, source.huggingface, root)
    elif source.checkpoint is not None:
        opened = _from_file(source, source.checkpoint, root)
    else:
        opened = _without_a_file(source, root)
    logger.debug("loaded %s from %s", type(opened.module).__name__, opened.where)
    return opened


def _without_a_file(source: ModelSource, root: Path) -> Opened:
    assert source.factory is not None  # the recipe has checked it
    module, notes = build(source.factory, source.kwargs, None, root=root, field="model.kwargs")
    return Opened(module, source.inputs, source.factory, notes)


def _from_folder(source: ModelSource, name: str, root: Path) -> Opened:
    folder = huggingface.folder_of(name, root)
    described = huggingface.describe(folder, source.inputs)
    needed = 2 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    require_memory(f"loading {folder}", needed, fix="close other programs, or use a larger machine")
    return Opened(huggingface.load(described), described.inputs, str(folder), described.notes, described)


def _from_file(source: ModelSource, checkpoint: Path, root: Path) -> Opened:
    path = root / checkpoint
    if source.factory is not None:
        require_weights(path)
    elif path.is_dir():
        require_known(path)
    require_file(path, CheckpointError)
    require_memory(f"loading {path}", 2 * path.stat().st_size, fix="close other programs, or use a larger machine")
    if source.factory is None:
        return _from_program(source, path)
    module, notes = build(source.factory, source.kwargs, path, choice=source.weights, root=root, field="model.kwargs")
    return Opened(module, source.inputs, str(path), notes)


def _from_program(source: ModelSource, path: Path) -> Opened:
    """A file that holds its own network; which kind it is, its content says."""
    require_known(path)
    kind = kind_of(path)
    if kind == "torchscript":
        program = read_torchscript(path, source.inputs)
        return Opened(program.module(), source.inputs, str(path), (CONVERTED,))
    if kind == "keras":
        network, inputs = read_keras(path, source.inputs)
        return Opened(network, inputs, str(path), (FROM_KERAS,))
    if path.suffix == ".pt2" or kind == "program":
        program = read_program(path, trust=source.trust)
        return Opened(program.module(), source.inputs or inputs_of(program, path), str(path))
    raise CheckpointError(
        "holds weights alone, which do not make a model",
        where=str(path),
        fix="add model.factory: module:callable, which builds the network",
    )


def from_module(
    module: nn.Module,
    inputs: Iterable[TensorSpec],
    *,
    outputs: Sequence[str] = (),
    classes: Sequence[str] = (),
    samples: SampleSet | None = None,
) -> Model:
    """The model of a module that is already in memory; the module is copied and stays as it is.

    Args:
        samples: What the module is tried on; made-up values where they are left out, which do not fit a module that
            looks at them, such as one that takes sequence lengths.

    Raises:
        CheckpointError: The module does not run on inputs of these shapes, or takes or gives what no target can hold.

    >>> model = from_module(nn.Linear(3, 2), [TensorSpec(name="x", shape=(3,))])
    >>> model.outputs, model.module.training
    (('output',), False)
    """
    where = type(module).__name__
    module = copied(module, where=where)
    if not isinstance(module, GraphModule):  # an exported program carries its mode in its graph
        module.eval()
    examples = () if samples is None else examples_of(samples)
    return checked_model(module, tuple(inputs), tuple(outputs), tuple(classes), where=where, examples=examples)
