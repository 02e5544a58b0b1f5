"""Feature losses, which compare outputs of layers of a student and its teacher: attention transfer and hints.

Features of any kind are treated as maps ``(N, C, P)``: images ``(N, C, H, W)`` have ``P = H * W`` positions, tokens
``(N, P, C)`` have P, and vectors ``(N, C)`` have one.

- ``attention`` (Zagoruyko and Komodakis 2017, https://arxiv.org/abs/1612.03928, equation 2): where the energy is,
  ``|| q(s) / ||q(s)|| - q(t) / ||q(t)|| ||^2`` with ``q(a) = sum over channels of a^2``, averaged over samples. Widths
  may differ.
- ``hint`` (Romero et al. 2015, https://arxiv.org/abs/1412.6550): the squared error of the student's features, mapped
  to the teacher's width by a learned 1x1 projection, relative to the teacher's mean square.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core import StageError
from pipeline.core.outputs import output_tuple
from pipeline.data.samples import Batch
from pipeline.recipe import Features
from pipeline.training.loop import StepLoss


class FeatureLoss(nn.Module):
    """A loss on outputs plus a loss on features. Its parameters are the projections, trained with the student.

    Args:
        base: The loss on outputs; it runs the student once, and the teacher at most once.
        inputs: One batch, which is run to find the layers and their widths.

    Raises:
        StageError: A layer does not exist, or the two layers of a pair cannot be compared.
    """

    def __init__(
        self, base: StepLoss, student: nn.Module, teacher: nn.Module, config: Features, inputs: tuple[Tensor, ...]
    ) -> None:
        super().__init__()
        self._base, self._config = base, config
        self._teacher = (teacher,)  # in a tuple, so that its parameters are not among those of this module
        self.layers = _pairs(student, teacher, config, inputs)
        own, taught = _maps(student, self.layers.keys(), inputs), _maps(teacher, self.layers.values(), inputs)
        pairs = [(own[name], taught[twin]) for name, twin in self.layers.items()]
        for (name, twin), (s, t) in zip(self.layers.items(), pairs, strict=True):
            _refuse_mismatch(name, twin, s, t, config)
        self.projections = nn.ModuleList(
            nn.Conv1d(s.shape[1], t.shape[1], 1) for s, t in pairs if config.kind == "hint"
        )

    def forward(self, student: nn.Module, batch: Batch) -> Tensor:
        """The loss of one batch, a scalar."""
        (teacher,) = self._teacher
        with (
            _watched(extract_model_from_parallel(student), self.layers.keys()) as own,
            _watched(teacher, self.layers.values()) as taught,
        ):
            loss = self._base(student, batch)
            if not taught:  # a loss on labels alone does not run the teacher
                with torch.no_grad():
                    teacher(*batch.inputs)
        pairs = [(_as_map(own[name]), _as_map(taught[twin])) for name, twin in self.layers.items()]
        if self._config.kind == "attention":
            terms = [attention_error(s, t) for s, t in pairs]
        else:
            terms = [hint_error(project(s), t) for project, (s, t) in zip(self.projections, pairs, strict=True)]
        return loss + self._config.weight * torch.stack(terms).sum()


def attention_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between normalised attention maps of features ``(N, C, P)``; a scalar in [0, 2].

    >>> attention_error(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 3.0]]]))
    tensor(2.)
    """
    s, t = (functional.normalize(features.float().square().sum(1), dim=1) for features in (student, teacher))
    return (s - t).square().sum(1).mean()


def hint_error(projected: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of projected features ``(N, C, P)``, relative to the teacher's mean square; a scalar."""
    projected, teacher = projected.float(), teacher.float()
    return functional.mse_loss(projected, teacher) / teacher.square().mean().clamp_min(1e-12)


def matching_layers(student: nn.Module, teacher: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[str, ...]:
    """Names that both modules have and whose features have the same positions: the last at each resolution.

    Pruning leaves names and resolutions as they are, so a pruned student always has some.
    """
    positions = [
        {name: features.shape[2] for name, features in _maps(module, _names(module), inputs).items()}
        for module in (student, teacher)
    ]
    last: dict[int, str] = {}
    for name, count in positions[0].items():
        if count > 1 and positions[1].get(name) == count:
            last.pop(count, None)
            last[count] = name
    return tuple(last.values())


def _pairs(student: nn.Module, teacher: nn.Module, config: Features, inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """The teacher's layer by the student's."""
    layers = config.layers or matching_layers(student, teacher, inputs)
    if not layers:
        raise StageError(
            "the student and the teacher have no layers of the same name and resolution",
            where="distill.features",
            fix="name them: layers: {student's layer: teacher's layer}",
        )
    pairs = dict(layers) if isinstance(layers, dict) else {name: name for name in layers}
    for module, names, whose in ((student, pairs.keys(), "student"), (teacher, pairs.values(), "teacher")):
        known = _names(module)
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise StageError(
                    f"the {whose} has no layer {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                    where="distill.features.layers",
                    fix=f"name modules as {whose}.named_modules() does",
                )
    return pairs


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_modules() if name]


def _maps(module: nn.Module, names: Iterable[str], inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Feature maps ``(N, C, P)`` by layer, in the order in which the layers finish; other outputs are left out."""
    was_training = module.training
    with torch.no_grad(), _watched(module.eval(), names) as seen:
        module(*inputs)
    module.train(was_training)
    return {name: _as_map(value) for name, value in seen.items() if isinstance(value, Tensor) and 2 <= value.ndim <= 4}


@contextmanager
def _watched(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """A mapping that collects what these layers return inside the block; of several tensors, the first."""
    seen: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen.pop(name, None)  # a layer that runs twice counts where it ran last
            seen[name] = output_tuple(output)[0]

        return keep

    handles = [module.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _as_map(features: Tensor) -> Tensor:
    if features.ndim == 4:
        return features.flatten(2)
    return features.transpose(1, 2) if features.ndim == 3 else features.unsqueeze(-1)


def _refuse_mismatch(name: str, twin: str, student: Tensor, teacher: Tensor, config: Features) -> None:
    fix = "name other layers: distill.features.layers"
    if student.shape[2] != teacher.shape[2]:
        raise StageError(
            f"the student's {name!r} has {student.shape[2]} positions, the teacher's {twin!r} has {teacher.shape[2]}",
            where="distill.features",
            fix=fix,
        )
    if config.kind == "attention" and student.shape[2] == 1:
        raise StageError(f"{name!r} has a single position, and so no attention map", where="distill.features", fix=fix)
