"""Damaged files of labels are read or refused, and nothing else: never another error, never a warning."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.core import DataError
from pipeline.data.labels import boxes, class_indices
from pipeline.data.source import DataSource
from tests.pipeline.data.opening import open_set

COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 4, "height": 4}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0.5, 2, 2], "iscrowd": 0}],
    "categories": [{"id": 2, "name": "cat"}],
}
BOX = {"image": "a.png", "label": {"boxes": [[0, 0, 2, 2.5]], "labels": [1]}}
FILES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "coco.json": (json.dumps(COCO), {"coco": "coco.json", "folder": "."}, boxes(2, 4, 4)),
    "set.csv": (
        'image,label\na.png,1\n"[[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]]",0\n',
        {"table": "set.csv", "inputs": ["image"], "labels": "label"},
        class_indices(2),
    ),
    "set.jsonl": (
        f"{json.dumps(BOX)}\n",
        {"table": "set.jsonl", "inputs": ["image"], "labels": "label"},
        boxes(2, 4, 4),
    ),
}
TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b"-",
    b"1e999",
    b"NaN",
    b"null",
    b"\xff",
    b"\n",
    b"\\u0000",
    b"9" * 30,
    b".",
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FILES)
def test_mutated_file_is_read_or_refused_and_nothing_else(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, keys, form = FILES[name]
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    random, messages = np.random.default_rng(0), []
    for _ in range(300):
        content = bytearray(text.encode())
        for _ in range(random.integers(1, 4)):
            place = int(random.integers(len(content)))
            token = TOKENS[random.integers(len(TOKENS))]
            content[place : place + int(random.integers(0, 3))] = token
        (tmp_path / name).write_bytes(content)
        try:
            _ = replace(open_set(DataSource(**keys)), form=form).sha256
        except DataError as error:
            messages.append(str(error))
    assert 100 < len(messages) < 300
    assert [text for text in messages if name not in text and "a.png" not in text] == []
