"""What the library is given: a module and samples as people have them become a `Model` and `SampleSet`s, in one place.

The inputs of a plain module are read off its forward's signature (their names) and off the samples (shapes and types).
Where samples can be read in several ways, the module is tried on each, and only one may run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from inspect import Parameter
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError
from torch import nn

from pipeline.core import CheckpointError, DataError, EdgewrightError, Model, Preprocessing, TensorSpec
from pipeline.data.readings import Samples, Wanted, names_of, readings, unscaled
from pipeline.data.samples import SampleSet, with_examples
from pipeline.models import load as loading
from pipeline.models.outputs import NAME, RESERVED
from pipeline.recipe import ModelSource

AnyModel: TypeAlias = Model | nn.Module | str | Path
"""What every function of the library takes as a model: a path is that of a program, an archive or a folder."""

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_SHOWN = 5


def from_module(
    module: nn.Module,
    inputs: Iterable[TensorSpec] | None = None,
    *,
    outputs: Sequence[str] = (),
    classes: Sequence[str] = (),
    samples: Samples | None = None,
    preprocessing: Preprocessing | None = None,
) -> Model:
    """The model of a module that is already in memory; the module is copied and stays as it is.

    Args:
        module: Its forward takes tensors ``(N, …)`` and returns such.
        inputs: Names, shapes without the batch, and types. By default names are those of forward's parameters, and
            the samples say the rest.
        outputs: Their names; ``output``, ``output_1``, … or the keys of what forward returns, when empty.
        classes: Class names, in the order of the logits.
        samples: What the module is tried on. Without them, values are made up, which do not fit a module that looks
            at them, such as one that takes sequence lengths.
        preprocessing: How stored samples (files, 8-bit pixels) become inputs.

    Raises:
        CheckpointError: The module does not run on these inputs, or takes or gives what no target can hold.
        DataError: The samples are nothing that is taken, or could mean several things.

    >>> import torch
    >>> model = from_module(nn.Linear(3, 2), samples=torch.zeros(8, 3))
    >>> model.inputs[0].name, model.inputs[0].shape, model.outputs
    ('input', (3,), ('output',))
    """
    if not isinstance(module, nn.Module):
        raise _no_model(module, "module")
    how = preprocessing or Preprocessing()
    if samples is None:
        if inputs is None:
            raise _no_samples(module)
        model = loading.from_module(module, inputs, outputs=outputs, classes=classes)
        return replace(model, preprocessing=how)
    wanted = _wanted(module, how, tuple(classes))
    if inputs is not None:
        wanted = replace(wanted, specs=tuple(inputs))
    found = readings(samples, wanted, where="samples")
    model, _ = _only_that_runs(module, found, "samples", specs=wanted.specs, outputs=outputs, classes=classes)
    return replace(model, preprocessing=how)


def load(source: ModelSource | str | Path, root: str | Path = Path(), *, samples: Samples | None = None) -> Model:
    """Load an FP32 model from a file.

    Args:
        source: A factory with weights, ``ModelSource(factory="my_models:net", checkpoint="weights.safetensors")``; or
            the path of what holds its own network: a ``.pt2``, a TorchScript or Keras archive, or a folder of
            transformers.
        root: What relative paths start from.
        samples: What the model is tried on; made-up values where they are left out.

    Raises:
        CheckpointError: The file is missing, unreadable or holds pickled code; its keys or shapes are not the
            factory's; or the model does not run on these samples, or takes or gives what no target can hold.
        RecipeError: The factory cannot be imported.
    """
    asked = source if isinstance(source, ModelSource) else _source_of(source)
    if samples is None or isinstance(samples, SampleSet):
        return loading.load(asked, Path(root), samples=samples)
    return as_samples(samples, loading.load(asked, Path(root)), where="samples")[0]


def as_model(given: AnyModel, samples: Samples | None, *, where: str) -> tuple[Model, SampleSet | None]:
    """The model that a function of the library is given, and the samples, read as that model takes them.

    Args:
        where: The argument that the samples are given as, for messages.

    Raises:
        EdgewrightError: It is no model, or a module whose inputs nothing tells.
        CheckpointError: See `from_module`.
        DataError: See `from_module`.
    """
    if isinstance(given, nn.Module):
        if samples is None:
            raise _no_samples(given)
        found = readings(samples, _wanted(given, Preprocessing(), ()), where=where)
        return _only_that_runs(given, found, where)
    model = given if isinstance(given, Model) else load(given)
    return (model, None) if samples is None else as_samples(samples, model, where=where)


def as_samples(samples: Samples, model: Model, *, where: str) -> tuple[Model, SampleSet]:
    """Samples as a model takes them, and the model with a few of them to be tried on.

    Raises:
        DataError: They are nothing that is taken, or not what the model takes.
    """
    wanted = Wanted(specs=model.inputs, preprocessing=model.preprocessing, classes=model.classes)
    found = readings(samples, wanted, where=where)
    fitting = [each for each in found if _alike(each.inputs, model.inputs)]
    if len(fitting) != 1:
        if fitting:
            raise _several(fitting, where)
        problem = f"holds samples {_shown(found[0].inputs)}, and the model takes {_shown(model.inputs)}"
        raise DataError(problem, where=where, fix="give samples of the model's inputs")
    return with_examples(model, fitting[0]), fitting[0]


def _source_of(given: Any) -> ModelSource:
    """A file that holds its own network, or a folder of transformers."""
    if not isinstance(given, str | Path):
        raise _no_model(given, "model")
    path = Path(given)
    key = "huggingface" if (path / "config.json").is_file() else "checkpoint"
    try:
        return ModelSource.model_validate({key: str(given)})
    except ValidationError as error:
        problem = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise CheckpointError(problem, where=str(given), fix="load(ModelSource(factory=…, checkpoint=…))") from None


def _wanted(module: nn.Module, preprocessing: Preprocessing, classes: tuple[str, ...]) -> Wanted:
    """What a module's forward says about its inputs."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # TorchScript, which is refused where the module is looked at
        return Wanted(preprocessing=preprocessing, classes=classes)
    named = [name for name, each in parameters.items() if each.kind in (*_POSITIONAL, Parameter.KEYWORD_ONLY)]
    needed = [name for name in named if parameters[name].default is Parameter.empty]
    ordered = [*needed, *(name for name in named if name not in needed)]
    names = tuple(names_of(ordered, pattern=NAME, reserved=RESERVED))
    return Wanted(names=names, least=len(needed), preprocessing=preprocessing, classes=classes)


def _only_that_runs(
    module: nn.Module,
    found: Sequence[SampleSet],
    where: str,
    *,
    specs: tuple[TensorSpec, ...] = (),
    outputs: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> tuple[Model, SampleSet]:
    """The one reading of the samples on which the module runs.

    Raises:
        CheckpointError: It runs on none of them.
        DataError: It runs on several.
    """
    ran: list[tuple[Model, SampleSet]] = []
    errors: list[CheckpointError] = []
    for samples in found:
        try:
            model = loading.from_module(
                module, specs or samples.inputs, outputs=outputs, classes=classes, samples=samples
            )
        except CheckpointError as error:
            errors.append(error)
        else:
            ran.append((replace(model, preprocessing=samples.preprocessing), samples))
    if len(ran) > 1:
        raise _several([samples for _, samples in ran], where)
    if not ran:
        if any(spec.dtype == "uint8" for spec in found[0].inputs):
            raise unscaled(where) from errors[0]
        first = errors[0]
        fix = f"{first.fix}; or the samples, whose first axis has to count them"
        raise CheckpointError(first.problem, where=first.where, fix=fix) from first
    return ran[0]


def _several(found: Sequence[SampleSet], where: str) -> DataError:
    meanings = ", or ".join(f"{len(each)} samples {_shown(each.inputs)}" for each in found)
    fix = "give one tensor (N, …): torch.stack(samples) or torch.cat(batches); a tuple of them for several inputs"
    return DataError(f"could be {meanings}, and the network takes both", where=where, fix=fix)


def _shown(inputs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {list(spec.shape)} {spec.dtype}" for spec in inputs[:_SHOWN])


def _alike(found: Sequence[TensorSpec], expected: Sequence[TensorSpec]) -> bool:
    pairs = list(zip(found, expected, strict=False))
    return len(found) == len(expected) and all(one.shape == other.shape for one, other in pairs)


def _no_model(given: object, where: str) -> EdgewrightError:
    return EdgewrightError(
        f"is a {type(given).__name__}",
        where=where,
        fix="give a torch.nn.Module, a Model, or the path of a .pt2, a TorchScript or Keras archive or a folder of "
        "transformers",
    )


def _no_samples(module: nn.Module) -> EdgewrightError:
    return EdgewrightError(
        f"nothing says what {type(module).__name__} takes",
        where="model",
        fix="give samples, or the inputs: from_module(net, [TensorSpec(name=…, shape=…)])",
    )
