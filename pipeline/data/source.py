"""What a recipe writes to name a set of samples. Imports no torch: a recipe must be read in an instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.core import Distinct, FilePath, Flag, Integer, Number, PositiveInt, Preprocessing, Setting

FACTORY = r"^\w+(\.\w+)*:\w+(\.\w+)*$"
Factory = Annotated[str, Field(pattern=FACTORY)]
"""A callable of a user's, as ``module:callable``, or ``module:Class.method``."""

BoxFormat = Literal["xyxy", "xywh", "cxcywh", "xyxyn", "xywhn", "cxcywhn"]
FORMATS = ("npz", "folder", "table", "huggingface", "factory", "synthetic")
CocoLabels = Literal["boxes", "masks", "keypoints"]
COCO_LABELS: tuple[CocoLabels, ...] = ("boxes", "masks", "keypoints")
"""What a COCO file says of an image."""
PATHS = ("npz", "folder", "masks", "coco", "yolo", "table", "huggingface")
"""Keys whose values are paths."""
_ONLY_WITH = {
    "inputs": ("npz", "table", "huggingface", "factory"),
    "labels": ("npz", "table", "huggingface", "factory", "coco"),
    "masks": ("folder",),
    "coco": ("folder",),
    "yolo": ("folder",),
    "ignore": ("masks",),
    "split": ("huggingface",),
    "box_format": ("npz", "table", "huggingface", "factory"),
    "part": ("npz", "folder", "table", "huggingface", "factory"),
    "kwargs": ("factory",),
    "collate": ("factory",),
}
"""Keys that say more about another one."""


class Part(Setting):
    """One of two parts into which a set is divided at random, the same way wherever the share and seed are the same."""

    held_out: Flag = Field(description="the held-out samples; false: all others")
    share: Number = Field(0.2, gt=0, le=0.5, description="of the samples that are held out")
    seed: Integer = Field(0, ge=0, le=2**32 - 1, description="of the random division")


class DataSource(Setting):
    """One set of samples, in one format: npz, folder, table, huggingface, factory or synthetic."""

    npz: FilePath | None = Field(None, description="compressed or plain NumPy archive")
    folder: Path | None = Field(
        None, description="images: one subfolder per class, unless masks, coco or yolo is given"
    )
    masks: Path | None = Field(None, description="folder of masks (PNG of class values), named as the images")
    coco: FilePath | None = Field(
        None,
        description="JSON file in COCO's format with boxes of the folder's images, or with labels: masks or keypoints",
    )
    yolo: Path | None = Field(
        None,
        description="folder of text files, named as the images, with a line 'class cx cy width height' for each box",
    )
    table: FilePath | None = Field(None, description=".csv or .jsonl with values, texts, and paths of images and .npy")
    huggingface: Path | None = Field(None, description="what a Hugging Face data set's save_to_disk has written")
    factory: Factory | None = Field(None, description="module:callable -> torch Dataset")
    synthetic: Literal[True] | None = Field(
        None, description="no samples: inputs are made from the model's batch norms; 'synthetic' alone says the same"
    )
    kwargs: dict[str, Any] = Field({}, description="arguments of the factory")
    collate: Factory | None = Field(None, description="module:callable that makes a batch of a factory's items")
    inputs: Annotated[tuple[str, ...], Distinct] = Field(
        ("images",), min_length=1, description="arrays in the npz, columns, or keys of items, one per model input"
    )
    labels: str | dict[str, str] | None = Field(
        "labels",
        description="array in the npz, column, or key of items, or {part: array} for labels of several parts; with a "
        "part 'offsets' (N + 1) in an npz, sample i has rows offsets[i] to offsets[i + 1] of the others; null means "
        "unlabelled, in every format, and so does an npz or a table that has no labels",
    )
    ignore: Annotated[tuple[Integer, ...], Distinct] = Field(
        (), description="values of masks that count for nothing, beside 255"
    )
    box_format: BoxFormat = Field(
        "xyxy",
        description="what four numbers of a box are: corners, corner and size, or centre and size, in pixels; with n "
        "behind it in shares of the image's width and height, as YOLO writes them (cxcywhn)",
    )
    split: str | None = Field(None, description="which data set, where several were saved together")
    preprocessing: Preprocessing | None = Field(
        None, description="of this set, in place of data.preprocessing; {} for samples that are the model's inputs"
    )
    part: Part | None = Field(None, description="use one part of the set, such as for training, and the rest elsewhere")
    limit: PositiveInt | None = Field(
        None, description="use this many samples, evenly spaced over the set, or over its part"
    )

    @model_validator(mode="after")
    def _exactly_one_source(self) -> DataSource:
        if sum(getattr(self, name) is not None for name in FORMATS) != 1:
            raise ValueError(f"name exactly one of {', '.join(FORMATS[:-1])} and {FORMATS[-1]}")
        for key, others in _ONLY_WITH.items():
            written = key in self.model_fields_set and getattr(self, key) not in (None, {}, ())
            if written and all(getattr(self, other) is None for other in others):
                raise ValueError(f"{key} goes with {' or '.join(others)}, and none is given: remove it")
        if self.coco is not None and self.labels not in (*COCO_LABELS, "labels", None):
            raise ValueError(f"labels: with coco, name one of {', '.join(COCO_LABELS)}")
        if sum(getattr(self, key) is not None for key in ("masks", "coco", "yolo")) > 1:
            raise ValueError("a folder has one of masks, coco and yolo")
        return self


def source_of_name(entry: Any) -> Any:
    """A format that needs no options may be written as its bare name."""
    return {entry: True} if entry == "synthetic" else entry
