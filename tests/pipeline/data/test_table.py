import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.data.labels import ANY, LabelForm, boxes, class_indices, mask, numbers, sequences, yes_or_no
from pipeline.data.open import open_samples
from pipeline.data.places import MAY_BE_POSITIONS
from pipeline.data.samples import SampleSet
from pipeline.data.source import DataSource
from tests.pipeline.data.opening import GREY

VECTOR = (TensorSpec(name="x", shape=(3,)),)


def opened(
    folder: Path,
    text: str | bytes | Sequence[Any],
    form: LabelForm = ANY,
    *,
    specs: tuple[TensorSpec, ...] = GREY,
    classes: Sequence[str] = (),
    inputs: tuple[str, ...] = ("image",),
    labels: Any = "label",
) -> SampleSet:
    """A table of text (CSV) or of objects (JSON Lines); ``a.png`` … ``c.png`` are images of one grey level each."""
    for name, level in (("a", 1), ("b", 2), ("c", 3)):
        Image.new("L", (4, 4), level).save(folder / f"{name}.png")
    of = "csv" if isinstance(text, str | bytes) else "jsonl"
    path = folder / f"set.{of}"
    if isinstance(text, str | bytes):
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in text))
    source = DataSource(table=path, inputs=inputs, labels=labels)
    samples = open_samples(source, specs, Preprocessing(), name="test", classes=classes)
    return replace(samples, form=form)


def test_csv_reads_images_and_numbers_in_order(tmp_path: Path) -> None:
    samples = opened(tmp_path, "image,label\na.png,2\nb.png,0\n", class_indices(3))
    (batch,) = samples.batches(2)
    assert batch.inputs[0][:, 0, 0, 0].tolist() == [1, 2]
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 0]


def test_csv_reads_quoted_cells_with_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    content = '\ufeffimage,label\r\na.png,"a ""b"",\r\nc"\r\n\r\nc.png,ä\r\n'.encode()
    samples = opened(tmp_path, content)
    (batch,) = samples.batches(2)
    assert batch.labels == ['a "b",\r\nc', "ä"]
    assert samples.source.place_of(1).endswith("set.csv: line 5: label")


def test_json_lines_read_boxes_lists_and_blank_lines(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "label": {"boxes": [[0, 0, 2, 2]], "labels": [1]}},
        {"label": {"boxes": [], "labels": []}, "image": "b.png"},
    ]
    (batch,) = opened(tmp_path, rows, boxes(2, 4, 4)).batches(2)
    assert batch.labels is not None
    assert [label["boxes"].tolist() for label in batch.labels] == [[[0, 0, 2, 2]], []]
    parts = [{"image": "a.png", "box": [[0, 0, 2, 2]], "kind": [1]}]
    (batch,) = opened(tmp_path, parts, boxes(2, 4, 4), labels={"boxes": "box", "labels": "kind"}).batches(1)
    assert batch.labels is not None
    assert batch.labels[0]["labels"].tolist() == [1]


def test_values_of_a_row_are_the_input_when_it_names_no_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([7.0, 8.0, 9.0]))
    text = 'x,y\n"[1, 2, 3]",0.5\nx.npy,-2e3\n'
    form = numbers((), MAY_BE_POSITIONS)
    (batch,) = opened(tmp_path, text, form, specs=VECTOR, inputs=("x",), labels="y").batches(2)
    assert batch.inputs[0].tolist() == [[1, 2, 3], [7, 8, 9]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0.5, -2000.0]


def test_several_inputs_come_from_several_columns(tmp_path: Path) -> None:
    specs = (*GREY, TensorSpec(name="age", shape=(1,)))
    rows = [{"image": "c.png", "age": [30], "label": 1}]
    (batch,) = opened(tmp_path, rows, specs=specs, inputs=("image", "age")).batches(1)
    assert [tensor.shape[1:] for tensor in batch.inputs] == [(1, 4, 4), (1,)]
    assert batch.inputs[1].item() == 30


def test_texts_are_spelled_by_the_alphabet_even_where_they_are_digits(tmp_path: Path) -> None:
    form = sequences(4, "120")
    (batch,) = opened(tmp_path, "image,label\na.png,012\nb.png,21\n", form).batches(2)
    assert batch.labels is not None
    assert [label.tolist() for label in batch.labels] == [[3, 1, 2], [2, 1]]


def test_class_names_become_the_numbers_of_model_classes(tmp_path: Path) -> None:
    rows = "image,label\na.png,dog\nb.png,cat\nc.png,1\n"
    (batch,) = opened(tmp_path, rows, class_indices(2), classes=("cat", "dog")).batches(3)
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0, 1]


def test_masks_are_read_as_they_are_stored(tmp_path: Path) -> None:
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "m.png")
    np.save(tmp_path / "m.npy", 1 - np.eye(4, dtype=np.int64))
    rows = "image,label\na.png,m.png\nb.png,m.npy\n"
    (batch,) = opened(tmp_path, rows, mask(2, 4, 4)).batches(2)
    assert batch.labels is not None
    assert (batch.labels.sum(0) == 1).all()
    assert batch.labels[0].trace() == 4


def test_table_without_the_labels_column_has_no_labels(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "set.csv").write_text("images\na.png\n")
    samples = open_samples(DataSource(table=tmp_path / "set.csv"), GREY, Preprocessing(), name="test")
    assert not samples.labelled
    assert len(samples.sha256) == 64


def test_limit_takes_rows_over_the_whole_table(tmp_path: Path) -> None:
    samples = opened(tmp_path, "image,label\na.png,0\nb.png,1\nc.png,2\n", class_indices(3)).take(2)
    (batch,) = samples.batches(2)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("box_format", "corners"), [("xyxy", [1, 1, 2, 2]), ("xywh", [1, 1, 3, 3]), ("cxcywh", [0, 0, 2, 2])]
)
def test_boxes_are_read_as_their_format_says(tmp_path: Path, box_format: str, corners: list[float]) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    row = {"images": "a.png", "labels": {"boxes": [[1, 1, 2, 2]], "labels": [1]}}
    (tmp_path / "set.jsonl").write_text(json.dumps(row))
    source = DataSource.model_validate({"table": tmp_path / "set.jsonl", "box_format": box_format})
    samples = open_samples(source, GREY, Preprocessing(), name="test")
    (batch,) = replace(samples, form=boxes(2, 4, 4)).batches(1)
    assert batch.labels is not None
    assert batch.labels[0]["boxes"].tolist() == [corners]


def test_class_names_in_lists_become_numbers(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "box": [[0, 0, 2, 2], [1, 1, 3, 3]], "kind": ["dog", "cat"]}]
    parts = {"boxes": "box", "labels": "kind"}
    (batch,) = opened(tmp_path, rows, boxes(2, 4, 4), labels=parts, classes=("cat", "dog")).batches(1)
    assert batch.labels is not None
    assert batch.labels[0]["labels"].tolist() == [1, 0]


def test_truth_values_are_read_as_json_and_as_pandas_write_them(tmp_path: Path) -> None:
    (batch,) = opened(tmp_path, f"{HEAD}a.png,true\nb.png,False\nc.png,True\n", yes_or_no(())).batches(3)
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0, 1]


HEAD = "image,label\n"


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        (f"{HEAD}a.png,1\nd.png,1\n", class_indices(2), r"set.csv: line 3: image: d.png: no such file"),
        (f"{HEAD}a.png,\n", class_indices(2), r"set.csv: line 2: label: is empty"),
        (f"{HEAD}a.png,  \n", sequences(3, "ab"), r"set.csv: line 2: label: is empty"),
        (f"{HEAD},1\n", class_indices(2), r"set.csv: line 2: image: is empty"),
        (f"{HEAD}a.png,1\nb.png,2\n", class_indices(2), r"set.csv: line 3: label: sample 1 has label 2, but the model"),
        (
            f"{HEAD}a.png,cat\n",
            class_indices(2),
            r"set.csv: line 2: label: sample 0 has the label 'cat', which is no number",
        ),
        (f"{HEAD}a.png,1.5\n", class_indices(2), r"line 2: label: sample 0 has 1.5, not an integer"),
        (f"{HEAD}a.png,NaN\n", numbers((), MAY_BE_POSITIONS), r"line 2: label: sample 0 has a label that is NaN"),
        (f'{HEAD}a.png,"[1, 2]"\n', numbers((), MAY_BE_POSITIONS), r"sample 0 has a label of shape \(2,\)"),
        (f'{HEAD}a.png,"[1, 2]"\n', yes_or_no((2,)), r"sample 0 has a value other than 0 and 1"),
        (f"{HEAD}a.png,abd\n", sequences(3, "ab"), r"line 2: label: sample 0 has the text 'abd', and 'd' is not in"),
        (f"{HEAD}a.png,ab\n", sequences(3), r"is not in the alphabet\n  fix: name the characters .* task.alphabet"),
        (f"{HEAD}a.png,1,2\n", class_indices(2), r"set.csv: line 2: has 3 cells, and the header has 2"),
        (f"{HEAD}a.png\n", class_indices(2), r"set.csv: line 2: has 1 cells, and the header has 2"),
        (f"{HEAD}a.png,0\nb.png,1\na.png,1\n", class_indices(2), r"set.csv: line 4: names a.png, as line 2 does"),
        (f'{HEAD}a.png,"0\n', class_indices(2), r"set.csv: line 2: is not CSV"),
        ("image,image\na.png,b.png\n", class_indices(2), r"set.csv: line 1: has two columns 'image'"),
        (b"image,label\na.png,\xff\n", class_indices(2), r"set.csv: line 2: is not UTF-8 text"),
        ("image,lable\na.png,1\n", class_indices(2), r"set.csv: has no column 'label'; did you mean 'lable'"),
        (HEAD, class_indices(2), r"set.csv: holds no rows"),
        ("", class_indices(2), r"set.csv: holds no rows"),
        (f"{HEAD}hello,1\n", class_indices(2), r"set.csv: line 2: image: 'hello' is no number, list of numbers, or"),
        (f"{HEAD}a.png,m.npy\n", mask(2, 4, 4), r"line 2: label: .*m.npy: no such file"),
        (f"{HEAD}a.png,b.png\n", mask(2, 4, 4), r"line 2: label: sample 0 has the value 2 in its mask"),
        (f"{HEAD}{'a' * 5000}.png,1\n", class_indices(2), r"line 2: image: a+ …: is not a file: File name too long"),
        (
            f'{HEAD}a.png,1\n"[1, 2]",1\n',
            class_indices(2),
            r"set.csv: line 3: samples of 'image' have shape \[2\] after",
        ),
        (f'{HEAD}"[[NaN, 1, 1, 1]]",1\n', class_indices(2), r"set.csv: line 2: .*'image'"),
        (f"{HEAD}{'a' * 200_000},1\n", class_indices(2), r"set.csv: line 2: is not CSV: field larger"),
    ],
)
def test_wrong_rows_are_one_error_that_names_line_and_column(
    tmp_path: Path, text: str | bytes, form: LabelForm, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _ = opened(tmp_path, text, form).sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image": "a.png", "label": 1}\n[1]\n', r"set.jsonl: line 2: holds a list, not an object"),
        ('{"image": "a.png", "label": 1}\n{"image": \n', r"set.jsonl: line 2: is not JSON"),
        ('{"image": "a.png", "label": 1}\n\n{"image": "b.png"}\n', r"set.jsonl: line 3: has no column 'label'"),
        ('{"image": "a.png", "label": 1}\n{"image": "b.png", "label": 1, "x": 2}\n', r"line 2: has other column 'x'"),
        ('{"image": "a.png", "label": null}\n', r"set.jsonl: line 1: label: is empty"),
        ('{"image": [[1, 2], [3]], "label": 1}\n', r"set.jsonl: line 1: image: .* is no number"),
        ('{"image": {"a": 1}, "label": 1}\n', r"set.jsonl: line 1: image: .* is no number"),
        ("[" * 100_000, r"set.jsonl: line 1: is not JSON"),
    ],
)
def test_wrong_json_lines_are_one_error_that_names_the_line(tmp_path: Path, content: str, message: str) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "set.jsonl").write_text(content)
    source = DataSource(table=tmp_path / "set.jsonl", inputs=("image",), labels="label")
    with pytest.raises(DataError, match=message):
        _ = open_samples(source, GREY, Preprocessing(), name="test").sha256


def test_unknown_class_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: label: 'dgo' is not in model.classes; did you mean 'dog'"):
        _ = opened(tmp_path, f"{HEAD}a.png,dgo\n", class_indices(2), classes=("cat", "dog")).sha256


def test_array_files_are_no_pickles_and_hold_what_they_state(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([1, "a"], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"line 2: x: .*x.npy: is not a readable array"):
        _ = opened(tmp_path, "x,label\nx.npy,1\n", specs=VECTOR, inputs=("x",)).sha256
    np.save(tmp_path / "x.npy", np.zeros(3))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    with pytest.raises(DataError, match=r"x.npy: is not a readable array"):
        _ = opened(tmp_path, "x,label\nx.npy,1\n", specs=VECTOR, inputs=("x",)).sha256


def test_other_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set.tsv").write_text("a\tb\n")
    with pytest.raises(DataError, match=r"is no .csv or .jsonl file"):
        open_samples(DataSource(table=tmp_path / "set.tsv"), GREY, Preprocessing(), name="test")
