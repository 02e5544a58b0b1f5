"""Mistakes that users make: each is one message that names the place and the fix, and changes nothing of theirs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch import nn

from pipeline.cli import main
from tests.pipeline.cli.conftest import refusal
from tests.pipeline.conftest import Project, quadrants

Change = Callable[[Project], object]


def mistake(name: str, change: Change, *expected: str) -> Any:
    """A change that breaks a project, and what the message must say about it."""
    return pytest.param(change, expected, id=name)


def at(place: str, value: object) -> Change:
    """Write a value into the recipe at a dotted place, such as ``stages.0.prune.skip``."""

    def change(project: Project) -> None:
        *parents, last = place.split(".")
        spot: Any = project.recipe
        for key in parents:
            spot = spot[int(key)] if isinstance(spot, list) else spot.setdefault(key, {})
        if isinstance(spot, list):
            spot[int(last)] = value
        else:
            spot[last] = value

    return change


def without(place: str) -> Change:
    """Remove a key of the recipe."""

    def change(project: Project) -> None:
        *parents, last = place.split(".")
        spot: Any = project.recipe
        for key in parents:
            spot = spot[key]
        del spot[last]

    return change


def both(*changes: Change) -> Change:
    def change(project: Project) -> None:
        for each in changes:
            each(project)

    return change


def stage(verb: str, **options: object) -> Change:
    return at("stages", [{verb: options}])


def target(name: str, **options: object) -> Change:
    return at("targets", [{name: options}])


def raw(content: str | bytes) -> Change:
    """Replace the recipe's file with other content."""
    return lambda p: (p.folder / "recipe.yaml").write_bytes(content.encode() if isinstance(content, str) else content)


def text(change: Callable[[str], str]) -> Change:
    """Change the text of the recipe."""
    return lambda p: (p.folder / "recipe.yaml").write_text(change(yaml.safe_dump(p.recipe)))


def file(name: str, content: bytes) -> Change:
    """Replace a file of the project."""
    return lambda p: (p.folder / name).write_bytes(content)


def checkpoint(name: str, content: bytes) -> Change:
    return both(file(name, content), at("model.checkpoint", name))


def folder(name: str, holds: str, content: bytes) -> Change:
    """A checkpoint that is a folder with one file."""
    return both(lambda p: (p.folder / name).mkdir(), file(f"{name}/{holds}", content), at("model.checkpoint", name))


def torch_file(value: object) -> Change:
    """A checkpoint that torch has saved."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return checkpoint("model.pt", buffer.getvalue())


def torchscript(module: nn.Module) -> Change:
    """A checkpoint that torch.jit has saved."""

    def change(project: Project) -> None:
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(module), buffer)
        checkpoint("model.pt", buffer.getvalue())(project)

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change the weights in the checkpoint."""

    def apply(project: Project) -> None:
        found = load_file(project.folder / "model.safetensors")
        change(found)
        save_file(found, project.folder / "model.safetensors")

    return apply


def code(source: str) -> Change:
    """Replace the factory's module; its factory is ``build``."""

    def change(project: Project) -> None:
        module = project.recipe["model"]["factory"].partition(":")[0]
        head = "import torch\nfrom torch import nn\n\n"
        (project.folder / f"{module}.py").write_text(head + textwrap.dedent(source))
        project.recipe["model"]["factory"] = f"{module}:build"

    return change


def code_after(source: str) -> Change:
    """Add to the factory's module."""

    def change(project: Project) -> None:
        path = project.folder / f"{project.recipe['model']['factory'].partition(':')[0]}.py"
        path.write_text(path.read_text() + "\n" + source)

    return change


def forward(body: str, *, empty: bool = True) -> Change:
    """A network of no weights with this body of ``forward(self, x)``."""
    source = f"""
        class Net(nn.Module):
            def forward(self, x):
                {body}

        def build():
            return Net()
    """
    return both(code(source), checkpoint("model.safetensors", save({})) if empty else lambda _: None)


def dataset(source: str) -> Change:
    """Evaluate on a Dataset of the user's: ``Samples`` in a module of its own."""

    def change(project: Project) -> None:
        module = f"{project.recipe['model']['factory'].partition(':')[0]}_data"
        (project.folder / f"{module}.py").write_text("import sys\nimport torch\n\n" + textwrap.dedent(source))
        project.recipe["data"]["evaluation"] = {"factory": f"{module}:Samples"}

    return change


def items(expression: str) -> Change:
    """Evaluate on a Dataset of 16 samples, each of which is this expression of ``i``."""
    return dataset(f"""
        class Samples:
            def __len__(self):
                return 16

            def __getitem__(self, i):
                return {expression}
    """)


def arrays(**changed: Any) -> Change:
    """Evaluate on other arrays."""
    return lambda p: np.savez(p.folder / "test.npz", **{**quadrants(16, 0), **changed})


def images(*files: str, content: bytes | None = None) -> Change:
    """Evaluate on an image folder with these files; all hold the same 8x8 image, or ``content``."""

    def change(project: Project) -> None:
        root = project.folder / "images"
        root.mkdir()
        for name in files:
            (root / name).parent.mkdir(exist_ok=True, parents=True)
            if content is None:
                Image.new("L", (8, 8)).save(root / name, format="PNG")
            else:
                (root / name).write_bytes(content)
        project.recipe["data"]["evaluation"] = {"folder": "images"}

    return change


def png_of(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def zip_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def recursive_list() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))])

FILES = [
    mistake("empty file", raw(""), "recipe.yaml", "is empty"),
    mistake("only comments", raw("# to do\n"), "recipe.yaml", "is empty"),
    mistake("a list", raw("- name: x\n"), "recipe.yaml", "not a mapping"),
    mistake("a sentence", raw("see the other file"), "recipe.yaml", "not a mapping"),
    mistake("unclosed bracket", raw("name: [x\n"), "recipe.yaml", "is not YAML", "line 2"),
    mistake("tab", raw("name: x\nmodel:\n\tfactory: a:b\n"), "recipe.yaml", "line 3", "spaces"),
    mistake("NUL", raw("name: \x00\n"), "recipe.yaml", "is not YAML"),
    mistake("binary", raw(bytes(range(256))), "recipe.yaml", "UTF-8"),
    mistake("UTF-16", raw("name: x\n".encode("utf-16")), "recipe.yaml", "UTF-8"),
    mistake("Latin-1", raw("name: café\n".encode("latin-1")), "recipe.yaml", "UTF-8"),
    mistake("two documents", raw("name: x\n---\nname: y\n"), "recipe.yaml", "single document"),
    mistake(
        "python tag", raw("name: !!python/object/apply:os.system [ls]\n"), "recipe.yaml", "python/object", "line 1"
    ),
    mistake("unknown tag", raw("data: !include data.yaml\n"), "recipe.yaml", "!include", "line 1"),
    mistake("bad integer tag", raw("seed: !!int many\n"), "recipe.yaml", "many"),
    mistake("bad binary tag", raw("name: !!binary x\n"), "recipe.yaml", "line 1", "binary"),
    mistake("undefined alias", raw("name: *x\n"), "recipe.yaml", "alias", "'x'"),
    mistake("list as a key", raw("[a, b]: 1\n"), "recipe.yaml", "line 1", "key"),
    mistake("deep nesting", raw("name: " + "[" * 600), "recipe.yaml", "nested too deeply"),
    mistake("aliases that explode", raw(LAUGHS), "recipe.yaml", "aliases"),
    mistake("alias of itself", text(lambda t: t + "stagse: &s [*s]\n"), "recipe.yaml", "contains itself"),
    mistake(
        "huge number", text(lambda t: t.replace("seed: 0", "") + f"seed: {'9' * 5000}\n"), "recipe.yaml", "line", "999"
    ),
    mistake("key twice", text(lambda t: t + "seed: 1\nseed: 2\n"), "recipe.yaml", "'seed'", "twice", "line"),
    mistake("nested key twice", raw("model:\n  trust: true\n  trust: false\n"), "recipe.yaml", "'trust'", "line 3"),
    mistake("key twice after an alias", raw("a: &k {x: 1}\nb: {<<: *k, y: 1, y: 2}\n"), "line 2", "'y'", "twice"),
    mistake("NULL values", raw("name:\nmodel:\ndata:\n"), "recipe.yaml: name", "model"),
    mistake("folder", lambda p: (p.folder / "recipe.yaml").mkdir(), "recipe.yaml", "is a folder"),
    mistake("a report", raw(json.dumps({"schema_version": "1.0", "run": {}})), "recipe.yaml", "schema_version"),
]


VALUES = [
    mistake("no name", without("name"), "recipe.yaml: name", "required"),
    mistake("name is a number", at("name", 5), "recipe.yaml: name", "string"),
    mistake("name is empty", at("name", ""), "recipe.yaml: name"),
    mistake("name is a path", at("name", "a/b"), "recipe.yaml: name"),
    mistake("name is the folder above", at("name", ".."), "recipe.yaml: name"),
    mistake("name is the store", at("name", ".store"), "recipe.yaml: name"),
    mistake("name is long", at("name", "x" * 300), "recipe.yaml: name", "100"),
    mistake("name is a boolean", text(lambda t: t.replace("quadrants", "true")), "recipe.yaml: name", "string"),
    mistake("unknown key", at("stagse", []), "'stagse'", "did you mean 'stages'"),
    mistake("number as a key", at("7", []), "recipe.yaml", "'7'"),
    mistake("no model", without("model"), "recipe.yaml: model", "required"),
    mistake("model is a list", at("model", [{"factory": "a:b"}]), "recipe.yaml: model", "mapping"),
    mistake("model is a path", at("model", "model.pt2"), "recipe.yaml: model", "mapping"),
    mistake(
        "no checkpoint",
        both(without("model.checkpoint"), without("model.factory")),
        "recipe.yaml: model",
        "names no model",
    ),
    mistake("checkpoint is a number", at("model.checkpoint", 3), "recipe.yaml: model.checkpoint", "path"),
    mistake("checkpoint is empty", at("model.checkpoint", ""), "recipe.yaml: model.checkpoint"),
    mistake("checkpoint is a folder", at("model.checkpoint", ".."), "..", "is a folder"),
    mistake(
        "no checkpoint there",
        at("model.checkpoint", "modle.safetensors"),
        "modle.safetensors",
        "did you mean 'model.safetensors'",
    ),
    mistake("checkpoint in a file", at("model.checkpoint", "test.npz/a.pt"), "a.pt", "no such file"),
    mistake("checkpoint with NUL", at("model.checkpoint", "a\0b"), "no such file"),
    mistake("checkpoint of a long name", at("model.checkpoint", "x" * 3000), "too long"),
    mistake("no factory", without("model.factory"), "recipe.yaml: model", "add factory"),
    mistake("no inputs", without("model.inputs"), "recipe.yaml: model", "add inputs"),
    mistake("factory without a colon", at("model.factory", "nets.convnet"), "model.factory", "module:callable"),
    mistake("factory with a space", at("model.factory", "nets: convnet"), "model.factory", "module:callable"),
    mistake("factory as a path", at("model.factory", "nets.py:convnet"), "nets.py:convnet", "nets:convnet"),
    mistake("factory with dots only", at("model.factory", "..:convnet"), "model.factory", "module:callable"),
    mistake("shape is negative", at("model.inputs.0.shape", [1, -8, 8]), "model.inputs[0].shape"),
    mistake("shape is zero", at("model.inputs.0.shape", [1, 0, 8]), "model.inputs[0].shape"),
    mistake("shape of text", at("model.inputs.0.shape", ["batch", 1, 8, 8]), "model.inputs[0].shape"),
    mistake("shape of strings", at("model.inputs.0.shape", ["1", "8", "8"]), "model.inputs[0].shape", "integer"),
    mistake("range of floats", at("model.inputs.0.range", [0, 9]), "model.inputs[0]", "range: is of integers"),
    mistake(
        "range of nothing", both(at("model.inputs.0.dtype", "uint8"), at("model.inputs.0.range", [9, 0])), "is empty"
    ),
    mistake("range of one number", at("model.inputs.0.range", [9]), "model.inputs[0].range"),
    mistake("range of fractions", at("model.inputs.0.range", [0, 0.5]), "model.inputs[0].range", "integer"),
    mistake(
        "value outside the range",
        both(at("model.inputs.0.dtype", "uint8"), at("model.inputs.0.range", [0, 3])),
        "sample 0 of 'image' holds",
        "[0, 3]",
        "model.inputs",
    ),
    mistake("shape is a number", at("model.inputs.0.shape", 64), "model.inputs[0].shape"),
    mistake("shape with the batch", at("model.inputs.0.shape", [1, 1, 8, 8]), "train.npz", "[1, 1, 8, 8]"),
    mistake("shape of others", at("model.inputs.0.shape", [3, 32, 32]), "[3, 32, 32]"),
    mistake("shape that is huge", at("model.inputs.0.shape", [1, 10**9, 10**9]), "model.inputs[0].shape"),
    mistake("dtype", at("model.inputs.0.dtype", "float64"), "model.inputs[0].dtype", "float32"),
    mistake("input without a name", at("model.inputs", [{"shape": [1, 8, 8]}]), "model.inputs[0].name"),
    mistake("input without a shape", at("model.inputs", [{"name": "x"}]), "model.inputs[0].shape"),
    mistake("input name", at("model.inputs.0.name", "my image"), "'my image'", "model.inputs"),
    mistake(
        "input name twice",
        at("model.inputs", [{"name": "x", "shape": [1, 8, 8]}] * 2),
        "'x'",
        "model.inputs",
    ),
    mistake("inputs is a mapping", at("model.inputs", {"name": "x", "shape": [1]}), "model.inputs"),
    mistake("too many outputs", at("model.outputs", ["a", "b"]), "2 names", "model.outputs"),
    mistake("outputs is a word", at("model.outputs", "logits"), "model.outputs", "list"),
    mistake("too few classes", at("model.classes", ["a", "b"]), "4 logits", "2 classes", "model.classes"),
    mistake("classes of booleans", at("model.classes", ["a", "b", True, False]), "model.classes[2]", "string"),
    mistake("classes of numbers", at("model.classes", [0, 1, 2, 3]), "model.classes[0]", "string"),
    mistake("class without a name", at("model.classes", ["a", "b", "c", ""]), "model.classes[3]"),
    mistake("kwargs is a list", at("model.kwargs", ["classes", 4]), "model.kwargs", "mapping"),
    mistake("kwargs with numbers as keys", at("model.kwargs", {1: 2}), "model.kwargs"),
    mistake("trust is a word", at("model.trust", "maybe"), "model.trust"),
    mistake("trust without a .pt2", at("model.trust", True), "model", "trust", ".pt2"),
    mistake(
        "kwargs with a .pt2",
        at("model", {"checkpoint": "m.pt2", "kwargs": {"classes": 4}}),
        "recipe.yaml: model",
        "kwargs",
    ),
    mistake("no data", without("data"), "recipe.yaml: data", "required"),
    mistake("no evaluation", without("data.evaluation"), "data.evaluation", "required"),
    mistake("evaluation is a path", at("data.evaluation", "test.npz"), "data.evaluation", "mapping"),
    mistake("npz and folder", at("data.evaluation.folder", "."), "data.evaluation", "exactly one"),
    mistake("no such npz", at("data.evaluation.npz", "tset.npz"), "tset.npz", "no such file"),
    mistake("npz is a folder", at("data.evaluation.npz", ".."), "is a folder"),
    mistake("limit 0", at("data.evaluation.limit", 0), "data.evaluation.limit", "greater than 0"),
    mistake("limit is negative", at("data.evaluation.limit", -1), "data.evaluation.limit"),
    mistake("limit is a fraction", at("data.evaluation.limit", 0.5), "data.evaluation.limit", "integer"),
    mistake("limit is true", at("data.evaluation.limit", True), "data.evaluation.limit", "integer"),
    mistake("inputs that are not there", at("data.evaluation.inputs", ["image"]), "test.npz", "'image'", "images"),
    mistake("labels that are not there", at("data.evaluation.labels", "lables"), "test.npz", "'lables'", "labels"),
    mistake("inputs of another number", at("data.evaluation.inputs", ["images", "labels"]), "test.npz", "2 arrays"),
    mistake("array twice", at("data.evaluation.inputs", ["images", "images"]), "data.evaluation.inputs", "'images'"),
    mistake("no inputs of an npz", at("data.evaluation.inputs", []), "data.evaluation.inputs"),
    mistake("kwargs of an npz", at("data.evaluation.kwargs", {"split": "test"}), "data.evaluation", "kwargs"),
    mistake(
        "labels of a folder",
        at("data.evaluation", {"folder": "images", "labels": "labels"}),
        "data.evaluation",
        "labels",
    ),
    mistake(
        "inputs of a folder",
        at("data.evaluation", {"folder": "images", "inputs": ["images"]}),
        "data.evaluation",
        "inputs",
    ),
    mistake("own preprocessing", at("data.train.preprocessing", {"scal": 2}), "data.train.preprocessing", "scale"),
    mistake("synthetic evaluation", at("data.evaluation", "synthetic"), "data.evaluation", "only calibration can be"),
    mistake("synthetic training", at("data.train", {"synthetic": True}), "data.train", "only calibration can be"),
    mistake("synthetic: false", at("data.calibration", {"synthetic": False}), "data.calibration.synthetic"),
    mistake("another bare word", at("data.calibration", "random"), "data.calibration", "{key: value}"),
    mistake("box format", at("data.evaluation.box_format", "yolo"), "data.evaluation.box_format", "cxcywhn"),
    mistake("range of no image", at("task", {"name": "regression", "data_range": 1}), "task", "data_range belongs to"),
    mistake("range of 0", at("task", {"name": "image", "data_range": 0}), "task.data_range", "greater than 0"),
    mistake(
        "labels of a COCO file",
        at("data.evaluation", {"folder": "images", "coco": "c.json", "labels": "polygons"}),
        "data.evaluation.labels",
        "boxes, masks, keypoints",
    ),
    mistake("sampling rate", at("data.preprocessing.sampling_rate", "16k"), "data.preprocessing.sampling_rate"),
    mistake("exif in words", at("data.preprocessing.exif", "no"), "data.preprocessing.exif", "true or false"),
    mistake("no better than chance", without("model.expect"), "model: Top-1", "chance", "data.preprocessing", "expect"),
    mistake(
        "off what is expected", at("model.expect", {"top1": 0.93}), "model.expect.top1", "not 93.0 %", "RGB or BGR"
    ),
    mistake("expected metric", at("model.expect", {"top_1": 0.2}), "model.expect.top_1", "did you mean 'top1'?"),
    mistake("expected in words", at("model.expect", {"top1": "high"}), "model.expect.top1", "number"),
    mistake(
        "expected of no labels",
        both(at("model.expect", {"top1": 0.2}), at("data.evaluation.labels", None)),
        "model.expect.top1",
        "no labels",
    ),
    mistake("scale 0", at("data.preprocessing.scale", 0), "data.preprocessing.scale"),
    mistake("scale is NaN", at("data.preprocessing.scale", float("nan")), "data.preprocessing.scale", "finite"),
    mistake("scale is infinite", at("data.preprocessing.scale", float("inf")), "data.preprocessing.scale", "finite"),
    mistake("scale is a formula", at("data.preprocessing.scale", "1/255"), "data.preprocessing.scale", "number"),
    mistake("mean is a number", at("data.preprocessing.mean", 0.5), "data.preprocessing.mean"),
    mistake("mean is NaN", at("data.preprocessing.mean", [float("nan")]), "data.preprocessing.mean[0]"),
    mistake("mean of two channels", at("data.preprocessing.mean", [0.1, 0.2]), "data.preprocessing", "2 numbers"),
    mistake("std 0", at("data.preprocessing.std", [0]), "data.preprocessing.std[0]", "greater than 0"),
    mistake("std is negative", at("data.preprocessing.std", [-0.5]), "data.preprocessing.std[0]"),
    mistake("std is infinite", at("data.preprocessing.std", [float("inf")]), "data.preprocessing.std[0]"),
    mistake("layout", at("data.preprocessing.layout", "hwc"), "data.preprocessing.layout", "nhwc"),
    mistake("resize is a number", at("data.preprocessing.resize", 8), "data.preprocessing.resize"),
    mistake("resize to 0", at("data.preprocessing.resize", [0, 8]), "data.preprocessing.resize"),
    mistake(
        "resize to another size", at("data.preprocessing.resize", [16, 16]), "data.preprocessing", "[16, 16]", "[8, 8]"
    ),
    mistake("resize to a huge size", at("data.preprocessing.resize", [10**9, 10**9]), "data.preprocessing"),
    mistake("crop of three", at("data.preprocessing.crop", [8, 8, 1]), "data.preprocessing.crop"),
    mistake("crop above the size", at("data.preprocessing.crop", [10, 10]), "data.preprocessing", "[10, 10]"),
    mistake("unknown preprocessing", at("data.preprocessing.normalize", True), "'normalize'"),
    mistake("stages is a mapping", at("stages", {"quantize": {}}), "recipe.yaml: stages", "list"),
    mistake("stages is a word", at("stages", "quantize"), "recipe.yaml: stages", "list"),
    mistake("stages is null", at("stages", None), "recipe.yaml: stages", "list"),
    mistake("unknown stage", at("stages", ["quantise"]), "stages[0]", "did you mean 'quantize'"),
    mistake("two verbs in one entry", at("stages", [{"prune": {"macs_ratio": 0.5}, "quantize": {}}]), "exactly one"),
    mistake("empty entry", at("stages", [{}]), "stages[0]", "exactly one"),
    mistake("entry is null", at("stages", [None]), "stages[0]"),
    mistake("entry is a number", at("stages", [8]), "stages[0]"),
    mistake("options are a list", at("stages", [{"quantize": ["minmax"]}]), "stages[0].quantize", "mapping"),
    mistake("quantize before distill", at("stages", ["quantize", "distill"]), "nothing can follow quantize"),
    mistake("quantize twice", at("stages", ["quantize", "quantize"]), "nothing can follow quantize"),
    mistake("prune without a budget", stage("prune"), "stages[0].prune", "macs_ratio"),
    mistake("ratio above 1", stage("prune", macs_ratio=40), "stages[0].prune.macs_ratio", "less than or equal to 1"),
    mistake("ratio 0", stage("prune", macs_ratio=0), "stages[0].prune.macs_ratio"),
    mistake("ratio in words", stage("prune", macs_ratio="half"), "stages[0].prune.macs_ratio", "number"),
    mistake("ratio in percent", stage("prune", macs_ratio="40%"), "stages[0].prune.macs_ratio", "number"),
    mistake("ratio as a string", stage("prune", macs_ratio="0.5"), "stages[0].prune.macs_ratio", "number"),
    mistake("ratio is true", stage("prune", macs_ratio=True), "stages[0].prune.macs_ratio", "number"),
    mistake("ratio is NaN", stage("prune", macs_ratio=float("nan")), "stages[0].prune.macs_ratio"),
    mistake("no MACs", stage("prune", max_macs=0), "stages[0].prune.max_macs"),
    mistake("importance", stage("prune", macs_ratio=0.5, importance="l3"), "stages[0].prune.importance", "'l2'"),
    mistake("allocation", stage("prune", macs_ratio=0.5, allocation="uniform"), "stages[0].prune.allocation"),
    mistake("round to 0", stage("prune", macs_ratio=0.5, round_to=0), "stages[0].prune.round_to"),
    mistake("iterations alone", stage("prune", macs_ratio=0.5, iterations=3), "stages[0].prune", "recover"),
    mistake("latency without a target", stage("prune", latency_ratio=0.5), "latency_target"),
    mistake(
        "latency on an unlisted target",
        stage("prune", latency_ratio=0.5, latency_target="onnx"),
        "stages[0].prune.latency_target",
        "targets",
    ),
    mistake(
        "latency target without a latency",
        stage("prune", macs_ratio=0.5, latency_target="onnx"),
        "stages[0].prune",
        "latency_target",
    ),
    mistake("no sparsity", stage("prune", sparsity={}), "stages[0].prune.sparsity", "ratio or pattern"),
    mistake("pattern", stage("prune", sparsity={"pattern": [4, 2]}), "stages[0].prune.sparsity", "smaller"),
    mistake(
        "zeros and then distill",
        at("stages", [{"prune": {"sparsity": {"ratio": 0.5}}}, "distill"]),
        "prune.sparsity",
    ),
    mistake("prune skips a word", stage("prune", macs_ratio=0.5, skip="fc"), "stages[0].prune.skip", "list"),
    mistake("prune skips an unknown layer", stage("prune", macs_ratio=0.5, skip=["9"]), "stages[0].prune.skip", "'9'"),
    mistake("quantize skips an unknown layer", stage("quantize", skip=["fc"]), "stages[0].quantize.skip", "'fc'"),
    mistake("quantize skips nothing", stage("quantize", skip=[""]), "stages[0].quantize.skip[0]", "character"),
    mistake("a layer in no type", stage("quantize", layers={"0": "int4"}), "stages[0].quantize.layers", "float"),
    mistake("layers in a list", stage("quantize", layers=["0"]), "stages[0].quantize.layers", "mapping"),
    mistake(
        "a pattern of no layer", stage("quantize", layers={"hed.*": "float"}), "stages[0].quantize.layers", "'hed.*'"
    ),
    mistake(
        "a type of no layer", stage("quantize", layers={"type:Conv9d": "float"}), "stages[0].quantize.layers", "Conv2d"
    ),
    mistake("no epochs", stage("distill", epochs=0), "stages[0].distill.epochs"),
    mistake("half an epoch", stage("distill", epochs=0.5), "stages[0].distill.epochs", "integer"),
    mistake("epochs as a string", stage("distill", epochs="3"), "stages[0].distill.epochs", "integer"),
    mistake("endless epochs", stage("distill", epochs=10**12), "stages[0].distill.epochs"),
    mistake("batch of 0", stage("distill", batch_size=0), "stages[0].distill.batch_size"),
    mistake("learning rate 0", stage("distill", learning_rate=0), "stages[0].distill.learning_rate"),
    mistake("infinite learning rate", stage("distill", learning_rate=float("inf")), "stages[0].distill.learning_rate"),
    mistake("momentum 1", stage("distill", momentum=1), "stages[0].distill.momentum"),
    mistake("optimizer", stage("distill", optimizer="adam"), "stages[0].distill.optimizer", "'adamw'"),
    mistake("warm-up of everything", stage("distill", warmup_ratio=1), "stages[0].distill.warmup_ratio"),
    mistake("precision", stage("distill", precision="fp16"), "stages[0].distill.precision", "'bf16'"),
    mistake("temperature 0", stage("distill", temperature=0), "stages[0].distill.temperature"),
    mistake("alpha 9", stage("distill", alpha=9), "stages[0].distill.alpha"),
    mistake("negative shift", stage("distill", augment={"shift": -1}), "stages[0].distill.augment.shift"),
    mistake("flip is a number", stage("distill", augment={"horizontal_flip": 0.5}), "augment.horizontal_flip"),
    mistake("mixed twice", stage("distill", augment={"mixup": 0.6, "cutmix": 0.6}), "distill.augment", "mixup"),
    mistake("mixed without a teacher", stage("distill", alpha=0, augment={"mixup": 1}), "stages[0].distill", "alpha"),
    mistake("negative relation", stage("distill", relations={"angle": -1}), "distill.relations.angle"),
    mistake("features of an unknown layer", stage("distill", features={"layers": ["fc"]}), "distill.features", "'fc'"),
    mistake("features of a word", stage("distill", features={"layers": "0"}), "distill.features.layers"),
    mistake("features without positions", stage("distill", features={"layers": ["8"]}), "distill.features", "'8'"),
    mistake("student without a factory", stage("distill", student={}), "distill.student.factory"),
    mistake("student of no module", stage("distill", student={"factory": "no_such:net"}), "no_such"),
    mistake("no observers", stage("quantize", observers=[]), "stages[0].quantize.observers"),
    mistake("unknown observer", stage("quantize", observers=["min_max"]), "stages[0].quantize.observers[0]", "minmax"),
    mistake("observer twice", stage("quantize", observers=["mse", "mse"]), "stages[0].quantize.observers", "'mse'"),
    mistake("flag in words", stage("quantize", adaround="no"), "stages[0].quantize.adaround", "true or false"),
    mistake("unknown option", stage("quantize", bits=4), "stages[0].quantize", "'bits'"),
    mistake("no calibration", both(stage("quantize"), without("data.calibration")), "data.calibration", "quantize"),
    mistake("no training data", both(stage("distill"), without("data.train")), "data.train", "distill"),
    mistake("qat is true", stage("quantize", qat=True), "stages[0].quantize.qat", "mapping"),
    mistake("targets is a mapping", at("targets", {"onnx": {}}), "recipe.yaml: targets", "list"),
    mistake("unknown target", at("targets", ["tensorrt"]), "targets[0]", "'tensorrt'"),
    mistake("target twice", at("targets", ["onnx", "onnx"]), "targets", "onnx"),
    mistake("target twice, with options", at("targets", ["onnx", {"onnx": {"ort": True}}]), "targets", "onnx"),
    mistake("unknown option of a target", target("onnx", opset=17), "targets[0].onnx", "'opset'"),
    mistake("dynamic input", target("onnx", dynamic={"imgae": [2]}), "targets[0].onnx.dynamic", "'imgae'", "'image'"),
    mistake("dynamic batch", target("onnx", dynamic={"image": [0]}), "targets[0].onnx.dynamic"),
    mistake("dynamic axis", target("onnx", dynamic={"image": [4]}), "targets[0].onnx.dynamic", "4"),
    mistake("dynamic axis twice", target("onnx", dynamic={"image": [2, 2]}), "targets[0].onnx.dynamic", "2"),
    mistake("dynamic of no axis", target("onnx", dynamic={"image": []}), "targets[0].onnx.dynamic"),
    mistake("dynamic is a list", target("onnx", dynamic=["image"]), "targets[0].onnx.dynamic"),
    mistake("provider twice", target("onnx", providers=["cpu", "cpu"]), "targets[0].onnx.providers", "'cpu'"),
    mistake("provider", target("onnx", providers=["gpu"]), "targets[0].onnx.providers[0]"),
    mistake("VNNI of an Arm CPU", target("onnx", cpu="arm", vnni=True), "targets[0].onnx", "vnni"),
    mistake("no batch sizes", target("coreml", batch_sizes=[]), "targets[0].coreml.batch_sizes"),
    mistake("batch size 0", target("coreml", batch_sizes=[0]), "targets[0].coreml.batch_sizes"),
    mistake("deployment target", target("coreml", deployment_target="iOS15"), "coreml.deployment_target", "iOS17"),
    mistake("classifier without classes", target("coreml", classifier=True), "targets[0].coreml", "model.classes"),
    mistake("NPU", target("tflite", npu=["ethos-u55"]), "targets[0].tflite.npu[0]", "ethos-u55-256"),
    mistake("NPU twice", target("tflite", npu=["ethos-u55-256"] * 2), "targets[0].tflite.npu", "ethos-u55-256"),
    mistake("variant", target("tflite", variants=["int4"]), "targets[0].tflite.variants[0]", "fp16"),
    mistake("variant twice", target("tflite", variants=["fp16", "fp16"]), "targets[0].tflite.variants", "fp16"),
    mistake("chip without a vendor", target("tflite", aot=["SM8650"]), "targets[0].tflite.aot[0]"),
    mistake("vendor", target("tflite", aot=["intel:x"]), "targets[0].tflite.aot[0]", "qualcomm"),
    mistake("chip", target("tflite", aot=["qualcomm:SM1"]), "targets.tflite.aot", "'SM1'", "SM8650"),
    mistake(
        "phone without its tool",
        target("tflite", android={"benchmark_tool": "/no/such/tool"}),
        "tflite.android",
        "/no/such/tool",
    ),
    mistake("metric", at("budget.metric", "f2"), "budget.metric", "top1"),
    mistake("drop above 1", at("budget.max_drop", 2), "budget.max_drop"),
    mistake("negative drop", at("budget.max_drop", -0.01), "budget.max_drop"),
    mistake("drop in percent", at("budget.max_drop", "1%"), "budget.max_drop", "number"),
    mistake("drop is NaN", at("budget.max_drop", float("nan")), "budget.max_drop"),
    mistake(
        "top1 without labels",
        both(at("budget.metric", "top1"), at("data.evaluation.labels", None)),
        "budget.metric",
        "labels",
    ),
    mistake("negative seed", at("seed", -1), "recipe.yaml: seed"),
    mistake("seed above 32 bits", at("seed", 2**32), "recipe.yaml: seed", "4294967295"),
    mistake("seed is a fraction", at("seed", 1.5), "recipe.yaml: seed", "integer"),
    mistake("seed is true", at("seed", True), "recipe.yaml: seed", "integer"),
    mistake("seed is a word", at("seed", "random"), "recipe.yaml: seed", "integer"),
]


class Opaque:
    """Something that a checkpoint should not hold."""


SAVING = b"class A(Module):\n  def __setstate__(self, state: int) -> NoneType:\n    torch.save(state, 'x')\n"
SHARDS = b'{"weight_map": {"a": "part-1.safetensors"}}'


def doubled(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: 2 * tensor for name, tensor in weights.items()}


def last_layer(weight: torch.Tensor) -> Change:
    """A torch file with another tensor as the last layer's weight."""
    return lambda p: torch_file({**load_file(p.folder / "model.safetensors"), "8.weight": weight})(p)


CHECKPOINTS = [
    mistake("empty", file("model.safetensors", b""), "model.safetensors", "safetensors file"),
    mistake("text", file("model.safetensors", b"weights"), "model.safetensors", "safetensors file"),
    mistake(
        "truncated",
        lambda p: os.truncate(p.folder / "model.safetensors", 3000),
        "model.safetensors",
        "safetensors file",
    ),
    mistake(
        "torch file of that name",
        both(torch_file({}), lambda p: (p.folder / "model.pt").rename(p.folder / "model.safetensors")),
        "model",
    ),
    mistake("missing weight", weights(lambda w: w.pop("8.bias")), "model.safetensors", "missing 8.bias"),
    mistake(
        "unexpected weight",
        weights(lambda w: w.update({"9.bias": torch.zeros(4)})),
        "model.safetensors",
        "unexpected 9.bias",
    ),
    mistake(
        "wrong shape",
        weights(lambda w: w.update({"8.weight": torch.zeros(4, 33)})),
        "model.safetensors",
        "8.weight",
        "[4, 33]",
    ),
    mistake(
        "NaN", weights(lambda w: w.update({"8.bias": torch.full((4,), float("nan"))})), "model.safetensors", "8.bias"
    ),
    mistake(
        "integers for weights",
        weights(lambda w: w.update({"8.weight": torch.zeros(4, 32, dtype=torch.int8)})),
        "model.safetensors",
        "8.weight",
        "int8",
    ),
    mistake(
        "complex weights",
        weights(lambda w: w.update({"8.weight": torch.zeros(4, 32, dtype=torch.complex64)})),
        "model.safetensors",
        "8.weight",
        "complex",
    ),
    mistake("another network's", checkpoint("model.safetensors", save({"fc.weight": torch.zeros(2, 2)})), "missing"),
    mistake("no weights", checkpoint("model.safetensors", save({})), "model.safetensors", "missing"),
    mistake("whole module", torch_file(nn.Linear(2, 2)), "model.pt", "pickled code"),
    mistake("object", torch_file({"weights": Opaque()}), "model.pt", "pickled code"),
    mistake("pickle", checkpoint("model.pt", pickle.dumps({"a": 1})), "model.pt"),
    mistake("list of tensors", torch_file([torch.zeros(2)]), "model.pt", "not a state dict"),
    mistake("state dict with a number", torch_file({"a": torch.zeros(2), "epoch": 3}), "model.pt", "'epoch'"),
    mistake("numbers as keys", torch_file({0: torch.zeros(2)}), "model.pt"),
    mistake("single tensor", torch_file(torch.zeros(2)), "model.pt", "not a state dict"),
    mistake("empty torch file", checkpoint("model.pt", b""), "model.pt", "not a torch checkpoint"),
    mistake("text as a torch file", checkpoint("model.pt", b"hello"), "model.pt"),
    mistake(
        "Git LFS pointer",
        checkpoint("model.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "model.pt",
        "git lfs pull",
    ),
    mistake("an ONNX file", checkpoint("model.onnx", b"\x08\x07"), "model.onnx"),
    mistake("a NumPy file", both(checkpoint("model.npz", b""), arrays()), "model.npz"),
    mistake("zip of something else", checkpoint("model.pt", zip_of(readme=b"hello")), "model.pt"),
    mistake(
        "parallel prefix",
        torch_file({"module.0.weight": torch.zeros(16, 1, 3, 3)}),
        "model.pt",
        "under 'module'",
        "missing",
    ),
    mistake(
        "empty .pt2", both(file("m.pt2", b""), at("model", {"checkpoint": "m.pt2"})), "m.pt2", "torch.export program"
    ),
    mistake(
        "zip as .pt2",
        both(file("m.pt2", zip_of(readme=b"hello")), at("model", {"checkpoint": "m.pt2"})),
        "m.pt2",
        "torch.export program",
    ),
    mistake(
        ".pt2 with a factory",
        both(file("m.pt2", b""), at("model.checkpoint", "m.pt2")),
        "recipe.yaml: model",
        "remove factory",
    ),
    mistake(
        "several weights that fit",
        lambda p: torch_file({"model": (w := load_file(p.folder / "model.safetensors")), "ema": doubled(w)})(p),
        "model.pt",
        "several weights that fit Sequential: model, ema",
        "model: {weights: model}",
    ),
    mistake(
        "weights of another key",
        both(torch_file({"net": {"a": torch.zeros(2)}}), at("model.weights", "ema")),
        "model.pt",
        "no weights 'ema'; there are net",
        "model.weights",
    ),
    mistake("weights without a checkpoint", both(without("model.checkpoint"), at("model.weights", "ema")), "weights"),
    mistake("weights of a number", at("model.weights", 3), "model.weights"),
    mistake("empty weights", at("model.weights", ""), "model.weights"),
    mistake(
        "nested weights of another network",
        torch_file({"state_dict": {"8.weight": torch.zeros(5, 32)}, "epoch": 3}),
        "under 'state_dict'",
        "missing 0.weight",
        "the file holds 'state_dict', 'epoch'",
    ),
    mistake(
        "misspelt names",
        weights(lambda w: w.update({"8.wieght": w.pop("8.weight")})),
        "missing 8.weight [4, 32], where the file has 8.wieght",
    ),
    mistake(
        "a prefix that some names lack",
        weights(lambda w: w.update({"net.8.bias": w.pop("8.bias")})),
        "missing 8.bias",
        "net.8.bias",
    ),
    mistake(
        "whole module in a dictionary", torch_file({"model": nn.Linear(2, 2), "epoch": 1}), "pickled code", "Linear"
    ),
    mistake(
        "optimizer only", torch_file({"optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}), "not a state dict"
    ),
    mistake("weights as arrays", torch_file({"0.weight": np.zeros((16, 1, 3, 3))}), "model.pt", "numpy"),
    mistake("sparse weights", last_layer(torch.eye(4, 32).to_sparse()), "8.weight", "plain tensor"),
    mistake("weights without values", last_layer(torch.empty(4, 32, device="meta")), "8.weight", "meta"),
    mistake(
        "quantized weights",
        last_layer(torch.quantize_per_tensor(torch.zeros(4, 32), 0.1, 0, torch.qint8)),
        "8.weight",
        "quantized",
    ),
    mistake("shards of a folder that are missing", checkpoint("m.index.json", SHARDS), "part-1.safetensors", "no such"),
    mistake("index that is no index", checkpoint("m.index.json", b"[]"), "m.index.json", "index of shards"),
    mistake("index of nothing", checkpoint("m.index.json", b'{"weight_map": {}}'), "names no files"),
    mistake(
        "index with a path",
        checkpoint("m.index.json", b'{"weight_map": {"a": "../a.safetensors"}}'),
        "m.index.json",
        "beside itself",
    ),
    mistake("factory's missing method", at("model.factory", "torch.nn:Linear.smal"), "'Linear' has no 'smal'"),
    mistake("ONNX by content", checkpoint("model.pt", b"\x08\x0a\x12\x07pytorch"), "model.pt", "ONNX", "torch.export"),
    mistake("TFLite", checkpoint("model.pt", b"\x1c\0\0\0TFL3" + bytes(40)), "model.pt", "TFLite", "PyTorch network"),
    mistake("Core ML", checkpoint("model.mlmodel", b"\x08\x04"), "model.mlmodel", "Core ML", "PyTorch network"),
    mistake("HDF5", checkpoint("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(40)), "model.h5", "HDF5", "PyTorch"),
    mistake(
        "Keras", checkpoint("model.keras", zip_of(**{"config.json": b"{}"})), "model.keras", "Keras", "model.factory"
    ),
    mistake(
        "damaged Keras",
        both(without("model.factory"), checkpoint("model.keras", zip_of(**{"config.json": b"{}"}))),
        "model.keras",
        "is not a model of Keras 3",
        "model.save",
    ),
    mistake("GGUF", checkpoint("model.gguf", b"GGUF\3\0\0\0"), "model.gguf", "GGUF"),
    mistake("array", checkpoint("model.npy", b"\x93NUMPY\1\0"), "model.npy", "NumPy"),
    mistake("packed", checkpoint("model.tar.gz", b"\x1f\x8b\x08\0"), "model.tar.gz", "packed archive", "unpack"),
    mistake("TensorFlow checkpoint", checkpoint("model.ckpt.index", b"\0\0\0"), "TensorFlow checkpoint"),
    mistake(
        "SavedModel",
        folder("saved", "saved_model.pb", b"\x08\1"),
        "saved",
        "SavedModel",
        "PyTorch",
    ),
    mistake(
        "folder of transformers",
        folder("bert", "config.json", b"{}"),
        "save_pretrained",
        "model: {huggingface:",
    ),
    mistake(
        "no folder of transformers", at("model", {"huggingface": "bert"}), "bert", "no such folder", "save_pretrained"
    ),
    mistake(
        "folder without a configuration",
        both(lambda p: (p.folder / "bert").mkdir(), at("model", {"huggingface": "bert"})),
        "bert",
        "no config.json",
        "save_pretrained",
    ),
    mistake(
        "configuration of an unknown network",
        both(
            lambda p: (p.folder / "bert").mkdir(),
            file("bert/config.json", b'{"model_type": "no_such"}'),
            at("model", {"huggingface": "bert"}),
        ),
        "config.json",
        "transformers knows",
        "never run",
    ),
    mistake(
        "two models", at("model.huggingface", "bert"), "model", "huggingface names the network", "remove checkpoint"
    ),
    mistake("unknown state", at("model.states", {"h": "h_out"}), "model.states", "no input 'h'", "{input: output}"),
    mistake("state of images", at("model.states", {"image": "output"}), "model.states", "every input is a state"),
    mistake(
        "Core ML package",
        both(
            lambda p: (p.folder / "a.mlpackage").mkdir(),
            file("a.mlpackage/Manifest.json", b"{}"),
            at("model.checkpoint", "a.mlpackage"),
        ),
        "a.mlpackage",
        "Core ML",
    ),
    mistake("program as weights", checkpoint("m.pt", zip_of(**{"m/models/model.json": b"{}"})), "torch.export program"),
    mistake(
        "trusted .pt2",
        both(file("m.pt2", b"junk"), at("model", {"checkpoint": "m.pt2", "trust": True})),
        "m.pt2",
        "torch.export program",
    ),
]


def named(name: str) -> Change:
    """Ask for another callable of the factory's module."""
    return lambda p: p.recipe["model"].update(factory=p.recipe["model"]["factory"].replace("convnet", name))


FACTORIES = [
    mistake("no such module", at("model.factory", "no_such_module:net"), "no_such_module:net", "no module"),
    mistake("no such callable", named("convent"), "'convent'", "did you mean 'convnet'"),
    mistake("not callable", both(code("build = 5"), lambda _: None), ":build", "not callable"),
    mistake("module", code("import os as build"), ":build", "not callable"),
    mistake("syntax error", code("def build(:"), ".py, line 4", "SyntaxError"),
    mistake("import of a missing package", code("import no_such_package"), "no_such_package", ".py, line 4"),
    mistake("import of a missing name", code("from torch import no_such_name"), "no_such_name", ".py, line 4"),
    mistake("missing attribute at import", code("torch.no_such_function()"), "no_such_function", ".py, line 4"),
    mistake("exit at import", code("import sys\nsys.exit(3)"), "SystemExit", ".py, line 5"),
    mistake("exit at import without a code", code("raise SystemExit"), "SystemExit", ".py, line 4"),
    mistake("unknown name at import", code("convnet(4)"), "NameError", ".py, line 4"),
    mistake("misspelt kwarg", at("model.kwargs", {"clases": 4}), "model.kwargs", "'clases'", "did you mean 'classes'"),
    mistake("kwarg of another network", at("model.kwargs", {"zoom": 4}), "model.kwargs", "'zoom'", "classes, width"),
    mistake(
        "missing kwarg",
        code("def build(classes):\n    return nn.Linear(classes, 2)"),
        "model.kwargs",
        "'classes'",
    ),
    mistake("kwarg of the wrong type", at("model.kwargs", {"classes": "four"}), "TypeError", ".py, line"),
    mistake("kwarg of the wrong value", at("model.kwargs", {"width": -1}), "convnet", "RuntimeError"),
    mistake("TypeError inside", code("def build():\n    return 1 + 'a'"), "TypeError", ".py, line 5"),
    mistake("KeyError inside", code("def build():\n    return {}['resnet']"), "KeyError: 'resnet'", ".py, line 5"),
    mistake("exit inside", code("import sys\ndef build():\n    sys.exit('no weights')"), "no weights", ".py, line 6"),
    mistake("endless recursion", code("def build():\n    return build()"), "RecursionError", ".py, line 5"),
    mistake("assertion", code("def build():\n    assert 1 > 2"), "AssertionError", ".py, line 5"),
    mistake("returns nothing", code("def build():\n    nn.Linear(2, 2)"), ":build", "NoneType"),
    mistake("returns weights", code("def build():\n    return {'a': torch.zeros(2)}"), ":build", "dict"),
    mistake("returns a class", code("def build():\n    return nn.ReLU"), ":build", "torch.nn.Module"),
    mistake("returns a tuple", code("def build():\n    return nn.ReLU(), 3"), ":build", "tuple"),
    mistake(
        "torchvision of another torch",
        both(
            lambda p: (p.folder / "torchvision").mkdir(),
            file("torchvision/__init__.py", b"raise RuntimeError('operator torchvision::nms does not exist')"),
            code("import torchvision"),
        ),
        "torchvision",
        "does not work beside torch 2",
        "pip uninstall torchvision",
    ),
    mistake(
        "several networks",
        code("def build():\n    return {'encoder': nn.ReLU(), 'decoder': nn.ReLU()}"),
        ":build",
        "several networks are out of scope",
    ),
    mistake(
        "a key-value cache as output",
        both(forward("return x.flatten(1)[:, :4], Cache()"), code_after("class Cache:\n    pass\n")),
        "is a Cache",
        "out of scope: give the encoder, or one step",
    ),
    mistake(
        "weights without a network",
        both(without("model.factory"), torch_file({"a": torch.zeros(2)})),
        "add model.factory",
    ),
    mistake(
        "TorchScript without inputs",
        both(without("model.factory"), without("model.inputs"), torchscript(nn.Flatten())),
        "model.pt",
        "TorchScript",
        "add model.inputs",
    ),
    mistake("TorchScript with a factory", torchscript(nn.Flatten()), "model.pt", "TorchScript", "remove model.factory"),
    mistake(
        "TorchScript that writes when it is loaded",
        both(
            without("model.factory"), checkpoint("model.pt", zip_of(**{"m/constants.pkl": b"", "m/code/a.py": SAVING}))
        ),
        "model.pt",
        "__setstate__",
        "torch.export.save",
    ),
    mistake(
        "ONNX without a factory", both(without("model.factory"), checkpoint("model.onnx", b"\x08\x0a\x12")), "ONNX"
    ),
    mistake("module of no forward", forward("pass"), "no tensor"),
    mistake("forward raises", forward("raise ValueError('bad')"), "ValueError: bad", ".py, line 7"),
    mistake("forward exits", forward("raise SystemExit(4)"), "SystemExit", ".py, line 7"),
    mistake("forward of another shape", forward("return x.view(-1, 100)"), "100", ".py, line 7"),
    mistake("forward returns text", forward("return 'cat'"), "is a str"),
    mistake("forward returns NaN", forward("return x.flatten(1)[:, :4] * float('nan')"), "not finite"),
    mistake(
        "forward that draws",
        forward("return torch.rand(x.shape[0], 4) + x.flatten(1)[:, :4]"),
        "Net: forward",
        "second time",
    ),
    mistake(
        "forward that fails for a batch size",
        forward("return x.flatten(1)[:, :4] if x.shape[0] != 3 else x.no_such_method()"),
        "3 samples",
        ".py, line 7",
    ),
    mistake(
        "forward without arguments", code("class build(nn.Module):\n    def forward(self):\n        return 1"), "1"
    ),
    mistake("sum of the batch", forward("return x.sum()"), "model"),
    mistake("forward recurses", forward("return self(x)"), "RecursionError"),
]


def broken_image(project: Project) -> None:
    images("a/1.png", "b/2.png", "c/3.png", "d/4.png")(project)
    (project.folder / "images/c/3.png").write_bytes(b"\x89PNG\r\n\x1a\n")


DATA = [
    mistake(
        "part of synthetic inputs",
        at("data.calibration", {"synthetic": True, "part": {"held_out": False}}),
        "data.calibration",
        "part goes with",
        "remove it",
    ),
    mistake("part without a side", at("data.train.part", {"share": 0.2}), "data.train.part.held_out", "required"),
    mistake("all held out", at("data.train.part", {"held_out": True, "share": 1.0}), "part.share", "0.5"),
    mistake("npz is text", file("test.npz", b"a,b\n1,2\n"), "test.npz", "not a readable npz"),
    mistake("npz is empty", file("test.npz", b""), "test.npz", "not a readable npz"),
    mistake("npz is a npy", lambda p: np.save((p.folder / "test.npz").open("wb"), np.zeros(3)), "test.npz", "npz"),
    mistake("npz is cut off", lambda p: os.truncate(p.folder / "test.npz", 2000), "test.npz", "not a readable npz"),
    mistake("zip of text", file("test.npz", zip_of(images=b"hello", labels=b"x")), "test.npz"),
    mistake(
        "zip of torn arrays", file("test.npz", zip_of(**{"images.npy": b"\x93NUMPY", "labels.npy": b""})), "test.npz"
    ),
    mistake(
        "Git LFS pointer", file("test.npz", b"version https://git-lfs.github.com/spec/v1\n"), "test.npz", "git lfs"
    ),
    mistake("pickled images", arrays(images=np.array([{}] * 16)), "test.npz", "images", "pickled"),
    mistake("pickled labels", arrays(labels=np.array([None] * 16)), "test.npz", "labels", "pickled"),
    mistake("text labels", arrays(labels=np.array(["cat"] * 16)), "test.npz: labels", "which is no number"),
    mistake(
        "labels of no class",
        both(arrays(labels=np.array([*"abcdabcdabcdabce"])), at("model.classes", list("abcd"))),
        "test.npz: labels",
        "sample 15",
        "'e', which is no class",
    ),
    mistake("fractional labels", arrays(labels=np.full(16, 1.5)), "test.npz: labels", "1.5"),
    mistake("NaN labels", arrays(labels=np.full(16, np.nan)), "test.npz: labels", "nan"),
    mistake("complex labels", arrays(labels=np.full(16, 1j)), "test.npz: labels", "complex"),
    mistake("soft labels", arrays(labels=np.full((16, 4), 0.25)), "test.npz: labels", "0.25", "not one-hot", "argmax"),
    mistake("two-hot labels", arrays(labels=np.ones((16, 4), int)), "test.npz: labels", "sample 0", "not one-hot"),
    mistake("one-hot of other classes", arrays(labels=np.eye(5)[np.arange(16) % 5]), "labels", "(5,)", "argmax"),
    mistake("fractions in a column", arrays(labels=np.full((16, 1), 0.5)), "test.npz: labels", "0.5", "integer"),
    mistake("single label", arrays(labels=np.int64(3)), "test.npz", "labels"),
    mistake("dates as labels", arrays(labels=np.full(16, "2024-01-01", "datetime64[D]")), "test.npz: labels", "date"),
    mistake("negative labels", arrays(labels=np.full(16, -1)), "test.npz: labels", "label -1"),
    mistake("labels from 1", arrays(labels=np.arange(16) % 4 + 1), "test.npz: labels", "label 4"),
    mistake("too few labels", arrays(labels=np.zeros(15, int)), "test.npz", "lengths", "15"),
    mistake("single image", arrays(images=np.float32(1)), "test.npz", "images"),
    mistake("no images", arrays(images=np.zeros((0, 8, 8)), labels=np.zeros(0, int)), "test.npz", "no samples"),
    mistake("text for images", arrays(images=np.full((16, 8, 8), "x")), "test.npz", "<U1"),
    mistake("complex images", arrays(images=np.zeros((16, 8, 8), complex)), "test.npz", "complex"),
    mistake("records for images", arrays(images=np.zeros((16, 8, 8), [("r", "u1")])), "test.npz", "image"),
    mistake("NaN images", arrays(images=np.full((16, 8, 8), np.nan)), "test.npz", "sample 0", "NaN"),
    mistake("images too large for float32", arrays(images=np.full((16, 8, 8), 1e300)), "test.npz", "infinity"),
    mistake("images of another size", arrays(images=np.zeros((16, 9, 9))), "test.npz", "[1, 9, 9]", "[1, 8, 8]"),
    mistake("flat images", arrays(images=np.zeros((16, 64))), "test.npz", "[64]"),
    mistake("images of three channels", arrays(images=np.zeros((16, 8, 8, 3))), "test.npz", "[1, 8, 8]"),
    mistake("one sample to train on", lambda p: np.savez(p.folder / "train.npz", **quadrants(1, 0)), "train.npz"),
    mistake("no such folder", at("data.evaluation", {"folder": "imgs"}), "imgs", "no such folder"),
    mistake("folder is a file", at("data.evaluation", {"folder": "test.npz"}), "test.npz", "is a file, not a folder"),
    mistake("empty folder", images(), "images", "no class folders"),
    mistake("images without class folders", images("1.png", "2.png"), "images", "one subfolder per class"),
    mistake("empty class folder", both(images("a/1.png"), lambda p: (p.folder / "images/b").mkdir()), "'b'"),
    mistake("too many class folders", images(*(f"{n}/x.png" for n in range(5))), "images", "4 classes"),
    mistake("text named .png", images("a/1.png", content=b"hello"), "1.png", "known format"),
    mistake("empty image", images("a/1.png", content=b""), "1.png", "known format"),
    mistake("broken image", broken_image, "3.png", "known format"),
    mistake(
        "dangling image", both(images("a/1.png"), lambda p: (p.folder / "images/a/2.png").symlink_to("x")), "2.png"
    ),
    mistake("folder named .png", both(images("a/1.png"), lambda p: (p.folder / "images/a/2.png").mkdir()), "2.png"),
    mistake("other files only", images("a/1.pdf", content=b"%PDF"), "images", "1.pdf"),
    mistake(
        "folder of no class",
        both(images(*(f"{c}/x.png" for c in "abcd")), at("model.classes", list("dcbz"))),
        "images",
        "class folder 'a'",
        "model.classes",
    ),
    mistake("too few class folders", images("a/x.png", "b/x.png"), "images", "names 2 classes (a, b)", "4 classes"),
    mistake("folder of train and test", images("train/a/x.png", "test/a/x.png"), "images", "such as 'a'", "such as"),
    mistake("image beside classes", images("a/x.png", "y.png"), "y.png", "lies beside the class folders"),
    mistake("image of an unread format", images("a/x.png", "a/y.heic"), "y.heic", ".heic", "convert it"),
    mistake("Dataset of no module", at("data.evaluation", {"factory": "no_such:Samples"}), "no_such"),
    mistake("Dataset of no name", at("data.evaluation", {"factory": "json:Samples"}), "json", "'Samples'"),
    mistake(
        "Dataset kwargs",
        both(items("0"), lambda p: p.recipe["data"]["evaluation"].update(kwargs={"split": "test"})),
        "data.evaluation.kwargs",
        "'split'",
    ),
    mistake("Dataset raises", dataset("def Samples():\n    raise OSError('offline')"), "offline", "_data.py, line 5"),
    mistake("Dataset exits", dataset("def Samples():\n    sys.exit(1)"), "SystemExit", "_data.py, line 5"),
    mistake("Dataset is nothing", dataset("def Samples():\n    pass"), "Samples", "__getitem__"),
    mistake("Dataset is iterable", dataset("def Samples():\n    return iter([1])"), "Samples", "__len__"),
    mistake("Dataset is a mapping", dataset("def Samples():\n    return {'a': 1}"), "Samples"),
    mistake("empty Dataset", dataset("def Samples():\n    return []"), "Samples", "no samples"),
    mistake("len raises", dataset("class Samples(list):\n    def __len__(self):\n        1 / 0"), "ZeroDivisionError"),
    mistake("len of text", dataset("class Samples(list):\n    def __len__(self):\n        return 'a'"), "Samples"),
    mistake("negative len", dataset("class Samples(list):\n    def __len__(self):\n        return -1"), "Samples"),
    mistake("item raises", items("{}['path']"), "KeyError: 'path'", "_data.py, line"),
    mistake("item exits", items("sys.exit(5)"), "SystemExit", "_data.py, line"),
    mistake("late item raises", items("(torch.zeros(1, 8, 8), 0) if i < 9 else 1 / 0"), "sample 9", "_data.py, line"),
    mistake("item is nothing", items("None"), "Samples"),
    mistake("item is text", items("('cat', 0)"), "Samples", "<U3"),
    mistake("item is empty", items("()"), "Samples"),
    mistake("items of different sizes", items("(torch.zeros(1, 8, 8 + i), 0)"), "Samples", "different sizes"),
    mistake("items of another size", items("(torch.zeros(3, 8, 8), 0)"), "Samples", "[3, 8, 8]"),
    mistake(
        "absurd len",
        dataset("""
            class Samples:
                def __len__(self):
                    return 10**15

                def __getitem__(self, i):
                    return torch.zeros(1, 8, 8), 0
        """),
        "Samples",
        "__len__",
    ),
    mistake("sparse items", items("(torch.zeros(1, 8, 8).to_sparse(), 0)"), "Samples", "sample 0"),
    mistake("complex items", items("(torch.zeros(1, 8, 8) * 1j, 0)"), "Samples", "sample 0"),
    mistake("labels of text", items("(torch.zeros(1, 8, 8), 'cat')"), "Samples", "'cat'"),
    mistake("labels of fractions", items("(torch.zeros(1, 8, 8), 0.7)"), "Samples", "0.7"),
    mistake("soft labels of items", items("(torch.zeros(1, 8, 8), torch.full((4,), 0.25))"), "Samples", "one-hot"),
    mistake("items with other inputs", items("{'a': torch.zeros(1, 8, 8), 'b': 1, 'label': 0}"), "no input 'image'"),
    mistake(
        "items without the named input",
        both(items("{'photo': torch.zeros(1, 8, 8)}"), at("data.evaluation.inputs", ["picture"])),
        "no input 'picture'; it has photo",
        "inputs: [...]",
    ),
    mistake(
        "items without the named label",
        both(items("{'image': torch.zeros(1, 8, 8), 'kind': 0}"), at("data.evaluation.labels", "kinds")),
        "no 'kinds'; did you mean 'kind'?",
    ),
    mistake("some items of two inputs", items("(torch.zeros(1, 8, 8), 0) if i else ()"), "sample 0 is empty"),
    mistake("images of 32 bits", items("(__import__('PIL.Image').Image.new('I', (8, 8)), 0)"), "Samples", "mode 'I'"),
    mistake(
        "DataLoader that draws at random",
        dataset("""
            def Samples():
                from torch.utils.data import DataLoader, RandomSampler
                rows = [(torch.zeros(1, 8, 8), 0)] * 4
                return DataLoader(rows, sampler=RandomSampler(rows, replacement=True))
        """),
        "Samples",
        "RandomSampler",
        "return a Dataset",
    ),
    mistake(
        "DataLoader of a stream",
        dataset("""
            class Stream(torch.utils.data.IterableDataset):
                def __iter__(self):
                    return iter([])

            def Samples():
                return torch.utils.data.DataLoader(Stream())
        """),
        "Samples",
        "IterableDataset",
    ),
    mistake(
        "DataFrame without the column",
        dataset("def Samples():\n    import pandas\n    return pandas.DataFrame({'a': [1], 'b': [2], 'label': [0]})"),
        "Samples",
        "columns a, b, label",
        "inputs: [...]",
    ),
    mistake(
        "DataFrame with an empty label",
        both(
            dataset(
                "def Samples():\n    import pandas\n    return pandas.DataFrame({'x': ['0.png'], 'label': [None]})"
            ),
            file("0.png", png_of(8, 8)),
        ),
        "row 0: label",
    ),
    mistake("data set of several parts", dataset("def Samples():\n    return {'train': [1]}"), "train", "one part"),
    mistake("boxes as labels", items("(torch.zeros(1, 8, 8), {'boxes': []})"), "Samples", "label"),
    mistake("labels of some", items("(torch.zeros(1, 8, 8), 0 if i else None)"), "Samples", "label"),
    mistake("label out of range", items("(torch.zeros(1, 8, 8), i)"), "Samples", "label 4"),
    mistake("items with NaN", items("(torch.full((1, 8, 8), float('nan')), 0)"), "Samples", "NaN"),
]


Snapshot = dict[str, str]


def snapshot(folder: Path) -> Snapshot:
    """Every entry under a folder, links as they are, with the hash of each file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = str(path.readlink()) if path.is_symlink() else "folder"
        if path.is_file() and not path.is_symlink():
            kind = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = kind
    return found


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which a stage would start; leaves no compiled modules behind."""

    def start(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a stage has started")

    monkeypatch.setattr("pipeline.execution.apply._run_stages", start)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", [*sys.path])


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The one message with which the command refuses these arguments, and changes nothing in the folder."""
    before = snapshot(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["edgewright", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 2, printed
    assert printed.out == ""
    assert refusal(printed.err).startswith("error: ")
    assert printed.err.count("error: ") == 1
    assert "\n  fix: " in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err) < 4000
    assert snapshot(folder) == before
    return printed.err


@pytest.mark.parametrize(("change", "expected"), [*FILES, *VALUES, *CHECKPOINTS, *FACTORIES, *DATA])
@pytest.mark.usefixtures("nothing_runs")
def test_run_names_the_place_and_the_fix(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Change,
    expected: tuple[str, ...],
) -> None:
    change(project)
    if not (project.folder / "recipe.yaml").exists():
        project.write()
    printed = refused(monkeypatch, capsys, project.folder, "run", "recipe.yaml", "--out", "out")
    for part in expected:
        assert part in printed


def command(name: str, arguments: str, *expected: str, prepare: Change = lambda _: None) -> Any:
    """A command line that cannot work, what the message must say, and what the folder holds before."""
    return pytest.param(arguments.split(" "), prepare, expected, id=name)


def onnx_folder(project: Project) -> None:
    """A folder of the user's, called as a run would call its own."""
    at("targets", ["onnx"])(project)
    (project.folder / "out/onnx").mkdir(parents=True)
    (project.folder / "out/onnx/notes.txt").write_text("mine")


def report_folder(project: Project) -> None:
    (project.folder / "out/report.json").mkdir(parents=True)


def linked_target(project: Project) -> None:
    at("targets", ["onnx"])(project)
    (project.folder / "out").mkdir()
    (project.folder / "out/onnx").symlink_to(project.folder)


def searched(project: Project) -> None:
    at("targets", ["onnx"])(project)


def report(**changed: object) -> Change:
    """A file report.json with these values in place of the sample's."""

    def write(project: Project) -> None:
        sample = json.loads((Path(__file__).parents[1] / "report/report_1_0.json").read_text())
        (project.folder / "report.json").write_text(json.dumps({**sample, **changed}))

    return write


LONG = "x" * 300

COMMANDS = [
    command("no such command", "rnu recipe.yaml", "No such command 'rnu'", "run", "edgewright --help"),
    command("no such option", "run recipe.yaml --otu out", "--otu", "--out", "edgewright run --help"),
    command("no recipe", "run", "Missing argument", "recipe", "edgewright run --help"),
    command("no such recipe", "run other.yaml", "other.yaml", "no such file"),
    command("two recipes", "run recipe.yaml recipe.yaml", "unexpected extra argument", "recipe.yaml"),
    command("option without a value", "run recipe.yaml --out", "--out", "requires an argument"),
    command("empty --out", "run recipe.yaml --out ", "--out", "names no folder"),
    command("empty --store", "run recipe.yaml --store ", "--store", "names no folder"),
    command("--out is a file", "run recipe.yaml --out test.npz", "test.npz", "not a folder"),
    command("--out in a file", "run recipe.yaml --out test.npz/out", "test.npz/out", "test.npz is not a folder"),
    command("--out is a device", "run recipe.yaml --out /dev/null", "/dev/null"),
    command("--out of a long name", f"run recipe.yaml --out {LONG}", "xxx", "name too long"),
    command(
        "--out is a dangling link",
        "run recipe.yaml --out link",
        "link",
        prepare=lambda p: (p.folder / "link").symlink_to("nowhere/at/all"),
    ),
    command("--out with a folder of the user's", "run recipe.yaml --out out", "out/onnx", prepare=onnx_folder),
    command("--out with report.json a folder", "run recipe.yaml --out out", "report.json", prepare=report_folder),
    command("--out with a link", "run recipe.yaml --out out", "out/onnx", "is a link", prepare=linked_target),
    command("--store is a file", "run recipe.yaml --out out --store test.npz", "test.npz", "not a folder"),
    command(
        "--store in a file", "run recipe.yaml --out out --store test.npz/a", "test.npz/a", "test.npz is not a folder"
    ),
    command("--store is a device", "run recipe.yaml --out out --store /dev/null", "/dev/null"),
    command("--store of a long name", f"run recipe.yaml --out out --store {LONG}", "xxx", "name too long"),
    command("demo into a file", "demo --out test.npz", "test.npz", "not a folder"),
    command("demo with an argument", "demo recipe.yaml", "unexpected extra argument"),
    command("no trials", "search recipe.yaml --trials 0", "--trials", "greater than or equal to 1"),
    command("trials in words", "search recipe.yaml --trials many", "--trials", "integer"),
    command("objective", "search recipe.yaml --objective top2", "'top2'", "top1"),
    command("objective without a target", "search recipe.yaml --objective latency", "'latency'", "latency:<target>"),
    command("objective of no target", "search recipe.yaml --objective size:", "'size:'", "size:<target>"),
    command(
        "objective of an unknown target",
        "search recipe.yaml --objective latency:gpu",
        "latency:gpu",
        "onnx",
        prepare=searched,
    ),
    command(
        "objective of an unlisted target",
        "search recipe.yaml --objective size:coreml",
        "size:coreml",
        "targets",
        prepare=searched,
    ),
    command(
        "objective twice",
        "search recipe.yaml --objective top1 --objective top1",
        "--objective",
        "twice",
        prepare=searched,
    ),
    command("search without targets", "search recipe.yaml", "targets", "add targets"),
    command("search without stages", "search recipe.yaml", "stages", prepare=both(searched, at("stages", []))),
    command(
        "search without training data",
        "search recipe.yaml",
        "data.train",
        prepare=both(searched, stage("quantize"), without("data.train")),
    ),
    command("search into a file", "search recipe.yaml --out test.npz", "test.npz", "File exists", prepare=searched),
    command("search into nothing", "search recipe.yaml --out ", "--out", "names no folder", prepare=searched),
    command(
        "search of a broken recipe",
        "search recipe.yaml",
        "stages[0].quantize.skip",
        prepare=both(searched, stage("quantize", skip=["fc"])),
    ),
    command(
        "search in no database",
        "search recipe.yaml --storage nonsense",
        "database",
        "URL",
        prepare=searched,
    ),
    command(
        "search in an unknown database",
        "search recipe.yaml --storage oracel://a/b",
        "database",
        "oracel",
        prepare=searched,
    ),
    command("schema of nothing", "schema", "Missing argument", "edgewright schema --help"),
    command("schema of a model", "schema model", "'model'", "recipe", "report"),
    command("show nothing", "show", "Missing argument", "edgewright show --help"),
    command("show a missing file", "show report.json", "report.json", "no such file"),
    command("show a folder", "show .", "Is a directory", "report.json"),
    command("show binary", "show test.npz", "test.npz", "is not a report"),
    command("show a recipe", "show recipe.yaml", "recipe.yaml", "is not a report"),
    command("show empty", "show report.json", "is not a report", prepare=file("report.json", b"")),
    command("show a list", "show report.json", "is not a report", prepare=file("report.json", b"[]")),
    command("show another JSON", "show report.json", "is not a report", prepare=file("report.json", b'{"a": 1}')),
    command("show deep JSON", "show report.json", "is not a report", prepare=file("report.json", b"[" * 100_000)),
    command(
        "show a newer report",
        "show report.json",
        "schema_version",
        "1.0",
        prepare=report(schema_version="9.0"),
    ),
    command("show a damaged report", "show report.json", "targets", prepare=report(targets=5)),
    command("compare one report", "compare report.json", "Missing argument", prepare=report()),
    command("compare with a missing one", "compare report.json no.json", "no.json", "no such file", prepare=report()),
    command("compare with binary", "compare report.json test.npz", "test.npz", "is not a report", prepare=report()),
    command(
        "compare into no folder",
        "compare report.json report.json --html no/such/page.html",
        "no/such/page.html",
        "cannot be written",
        prepare=report(),
    ),
    command(
        "compare into a folder",
        "compare report.json report.json --html out",
        "out",
        "cannot be written",
        prepare=both(report(), lambda p: (p.folder / "out").mkdir()),
    ),
]


@pytest.mark.parametrize(("arguments", "prepare", "expected"), COMMANDS)
@pytest.mark.usefixtures("nothing_runs")
def test_commands_name_the_place_and_the_fix(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    prepare: Change,
    expected: tuple[str, ...],
) -> None:
    prepare(project)
    project.write()
    printed = refused(monkeypatch, capsys, project.folder, *arguments)
    for part in expected:
        assert part in printed


def test_security_states_how_many_mistakes_are_tried() -> None:
    count = len([*FILES, *VALUES, *CHECKPOINTS, *FACTORIES, *DATA, *COMMANDS])
    assert count >= 150
    text = (Path(__file__).parents[3] / "SECURITY.md").read_text()
    assert f"| Mistakes of users: recipes, checkpoints, data, options, folders | {count} | 0 |" in text
