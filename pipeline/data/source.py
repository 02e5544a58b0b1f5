"""What a recipe writes to name a set of samples. Imports no torch: a recipe must be read in an instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.core import Distinct, FilePath, PositiveInt, Setting

FACTORY = r"^\w+(\.\w+)*:\w+$"
Factory = Annotated[str, Field(pattern=FACTORY)]
"""A callable of a user's, as ``module:callable``."""


class DataSource(Setting):
    """One set of samples: exactly one of ``npz``, ``folder`` and ``factory``."""

    npz: FilePath | None = Field(None, description="compressed or plain NumPy archive")
    folder: Path | None = Field(None, description="image folder with one subfolder per class")
    factory: Factory | None = Field(None, description="module:callable -> torch Dataset")
    kwargs: dict[str, Any] = {}
    inputs: Annotated[tuple[str, ...], Distinct] = Field(
        ("images",), min_length=1, description="arrays in the npz, one per model input"
    )
    labels: str | dict[str, str] | None = Field(
        "labels",
        description="array in the npz, or {part: array} for labels of several parts; with a part 'offsets' (N + 1), "
        "sample i has rows offsets[i] to offsets[i + 1] of the others; null, or absent, means unlabelled",
    )
    collate: Factory | None = Field(None, description="module:callable that makes a batch of a factory's items")
    limit: PositiveInt | None = Field(None, description="use this many samples, evenly spaced over the set")

    @model_validator(mode="after")
    def _exactly_one_source(self) -> DataSource:
        if sum(source is not None for source in (self.npz, self.folder, self.factory)) != 1:
            raise ValueError("name exactly one of npz, folder and factory")
        if self.npz is None and (unread := {"inputs", "labels"} & self.model_fields_set):
            raise ValueError(f"{min(unread)} names arrays of an npz, and none is given: remove it")
        if self.factory is None and self.kwargs:
            raise ValueError("kwargs are for a factory, and none is given: remove them")
        if self.factory is None and self.collate is not None:
            raise ValueError("collate is for a factory's items, and none is given: remove it")
        return self
