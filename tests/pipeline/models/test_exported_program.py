"""Programs of torch.export: attacks that torch's own loader carries out do nothing here, and honest ones are equal."""

from __future__ import annotations

import contextlib
import copy
import random
import resource
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree

from pipeline.core import CheckpointError
from pipeline.models import exported_program
from pipeline.models.capture import capture, example_inputs
from pipeline.models.exported_program import read_program
from pipeline.models.load import load
from pipeline.recipe import ModelSource
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.ranges.calibration import calibrate
from pipeline.stages.quantize.simulation import convert
from tests.networks.architectures import ARCHITECTURES
from tests.pipeline.models import pt2_attacks
from tests.pipeline.models.mutations import mutate_bytes, mutate_json
from tests.pipeline.models.pt2_attacks import ATTACKS, Affine, Archive, honest_program
from tests.pipeline.stages.quantize.prepared import prepare

IMAGES = torch.linspace(-2, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
BATCH = {0: Dim.DYNAMIC}


@pytest.fixture(autouse=True)
def _gradients() -> Iterator[None]:
    """An attack that fails inside a ``no_grad`` graph leaves gradients off."""
    yield
    torch.set_grad_enabled(True)


def save(program: ExportedProgram, path: Path) -> Path:
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_runs_with_the_loader_of_torch_and_not_here(
    attack: Callable[[Archive, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path, marker = pt2_attacks.write(attack, tmp_path)

    def load_and_run(load: Callable[[Path], nn.Module], expected: type[Exception]) -> None:
        monkeypatch.delitem(sys.modules, "attack_on_import", raising=False)
        with contextlib.suppress(expected):  # most of the files are of no use to torch either
            load(path)(*pt2_attacks.INPUT, gain=torch.ones(3))

    def ours(path: Path) -> nn.Module:
        return read_program(path)[1]

    with warnings.catch_warnings(action="ignore"):
        load_and_run(ours, CheckpointError)
        assert not marker.exists()
        load_and_run(lambda path: torch.export.load(path).module(), Exception)
    assert marker.exists()  # the attack is real


def test_load_runs_code_of_a_program_only_when_it_is_trusted(tmp_path: Path) -> None:
    path, marker = pt2_attacks.write(pt2_attacks.pickled_weight, tmp_path)
    with pytest.raises(CheckpointError, match=r"model: \{trust: true\}"):
        load(ModelSource(checkpoint=path))
    assert not marker.exists()
    with contextlib.suppress(CheckpointError):  # the file is of no use beside its code
        load(ModelSource(checkpoint=path, trust=True))
    assert marker.exists()


@pytest.mark.parametrize(
    ("attack", "problem"),
    [
        (pt2_attacks.pickled_weight, "the pickled tensor 'linear.weight'"),
        (pt2_attacks.opaque_constant, "the pickled object 'opaque_obj_0'"),
        (pt2_attacks.older_weights, "the pickled weights 'data/weights/model.pt'"),
        (pt2_attacks.older_archive_weights, "pickled weights in the layout of torch 2.7 and older"),
        (pt2_attacks.size_of_a_tensor, "the size \"__import__('os').system("),
        (pt2_attacks.guard, "the guard \"__import__('os').system("),
        (pt2_attacks.name_of_an_input, "the name \"gain=[__import__('os')"),
        (pt2_attacks.operator_that_writes_a_file, "the operator 'torch.ops.aten.from_file.default'"),
        (pt2_attacks.default_of_a_dictionary, "inputs or outputs in a 'collections.defaultdict'"),
    ],
)
def test_what_is_refused_is_named_with_the_way_to_trust_it(
    attack: Callable[[Archive, str], None], problem: str, tmp_path: Path
) -> None:
    path, _ = pt2_attacks.write(attack, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read_program(path)
    assert caught.value.where == str(path)
    assert caught.value.problem.startswith(f"is refused, because it holds {problem}")
    assert "model: {trust: true}" in str(caught.value.fix)


class Tied(nn.Module):
    """Tied weights, a view, constants, buffers of every kind, and names that are no identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"a-b": nn.Linear(8, 8), "3x3 c": nn.Linear(8, 8)})
        self.layers["3x3 c"].weight = self.layers["a-b"].weight
        self.transposed = nn.Parameter(torch.arange(64.0).reshape(8, 8).t())
        self.frozen = nn.Parameter(torch.ones(8), requires_grad=False)
        self.constant = torch.arange(8.0)
        self.register_buffer("repeated", torch.ones(1, 1).expand(8, 8))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("scalar", torch.tensor(3.0))
        self.register_buffer("passing", torch.ones(8), persistent=False)
        for dtype in (torch.int8, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64, torch.bool):
            self.register_buffer(f"of_{str(dtype)[6:]}", torch.ones(8, dtype=dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        for layer in self.layers.values():
            x = layer(x)
        x = x @ self.transposed * self.frozen + self.constant + self.scalar + self.passing + self.empty.sum()
        kinds = [buffer.float() for name, buffer in self.named_buffers() if name.startswith("of_")]
        return x + sum(kinds), self.repeated + torch.tensor([2.0])


class Inputs(nn.Module):
    """Inputs and outputs in every container, numbers, a text, and an input that is not given."""

    def forward(self, x: Tensor, numbers: list[Any], *rest: Tensor, tree: dict[str, Any], mode: str = "add") -> Any:
        y = x * numbers[0] + numbers[1][0] + sum(rest)
        return {"first": y if mode == "add" else x, "others": [tree["a b"] * 2, (tree["c"][3], x.shape[0])]}


class Sizes(nn.Module):
    """Sizes that are computed, compared, and read from data."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        height = x.shape[2]
        if x.shape[0] * height % 2 == 0:
            x = x * 2
        pooled = nn.functional.max_pool2d(nn.functional.pad(x, (1, 1, 1, 1)), 3, 2)
        return (
            pooled.flatten(1),
            x.new_zeros(max(x.shape[0], 3), min(height, 4), x.shape[0] ** 2),
            x[: x.shape[0] // 2 + 1],
            x * x.shape[0] ** 0.5,
            torch.arange(height) + height * 2,
            torch.nonzero(x > 0),
        )


class Branches(nn.Module):
    """Parts of the graph inside the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.linear(y)
        with torch.no_grad():
            return torch.vmap(lambda row: row * 2)(y.float())


class Counter(nn.Module):
    """A buffer that every call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls


HONEST: dict[str, Callable[[], tuple[ExportedProgram, tuple[Any, ...], dict[str, Any]]]] = {}


def honest(name: str, module: Callable[[], nn.Module], *arguments: Any, shapes: Any = None, **keywords: Any) -> None:
    def export() -> tuple[ExportedProgram, tuple[Any, ...], dict[str, Any]]:
        torch.manual_seed(0)
        program = torch.export.export(module().eval(), arguments, keywords, dynamic_shapes=shapes)
        return program, arguments, keywords

    HONEST[name] = export


honest("affine", Affine, *pt2_attacks.INPUT, gain=torch.ones(3))
honest("tied", Tied, IMAGES)
honest("tied of a dynamic batch", Tied, IMAGES, shapes=(BATCH,))
honest("inputs", Inputs, IMAGES, [2, (3.5,)], IMAGES, IMAGES, tree={"a b": IMAGES, "c": {3: IMAGES}}, mode="add")
honest("sizes", Sizes, IMAGES)
honest("dynamic sizes", Sizes, IMAGES, shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},))
honest("branches", Branches, IMAGES, shapes=(BATCH,))
honest("counter", Counter, IMAGES)
honest("lstm", lambda: nn.LSTM(8, 4, batch_first=True, bidirectional=True), IMAGES[0], shapes=(BATCH,))
honest("attention", lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), IMAGES[0], shapes=(BATCH,))


def check_equal(program: ExportedProgram, arguments: tuple[Any, ...], keywords: dict[str, Any], path: Path) -> None:
    """Outputs, source code and weights of the safe reader's module, and of torch's, are the same."""
    save(program, path)
    theirs, (_, ours) = torch.export.load(path).module(), read_program(path)
    assert ours.code == theirs.code
    assert hasattr(ours, "_guards_fn") == hasattr(theirs, "_guards_fn")
    weights = [
        [
            (name, tensor.dtype, tensor.stride(), tensor.requires_grad, type(tensor))
            for name, tensor in module.state_dict(keep_vars=True).items()
        ]
        for module in (ours, theirs)
    ]
    assert weights[0] == weights[1]
    outputs = [_pytree.tree_flatten(module(*arguments, **keywords)) for module in (ours, theirs)]
    assert outputs[0][1] == outputs[1][1]
    for one, other in zip(outputs[0][0], outputs[1][0], strict=True):
        if isinstance(one, Tensor):
            assert one.dtype == other.dtype
            assert one.stride() == other.stride()
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        else:
            assert one == other


@pytest.mark.parametrize("name", HONEST)
def test_program_is_equal_to_the_one_that_torch_loads(name: str, tmp_path: Path) -> None:
    check_equal(*HONEST[name](), tmp_path / "m.pt2")


@pytest.mark.parametrize("name", ["called_twice", "two_in_two_out", "control_flow"])
def test_quantized_program_is_equal_to_the_one_that_torch_loads(name: str, tmp_path: Path) -> None:
    check_quantized(name, tmp_path)


def check_quantized(name: str, folder: Path) -> None:
    architecture = ARCHITECTURES[name]
    found = calibrate(canonical_graph(architecture.model()), architecture.samples(16), batch_size=16)
    quantized = convert(prepare(found, method="minmax", bias_correction="analytic"))
    program = capture(quantized, architecture.inputs)
    assert any("quantize_per" in str(node.target) for node in program.graph.nodes)
    check_equal(program, example_inputs(architecture.inputs, 3), {}, folder / "int8.pt2")


def test_tied_weights_share_their_memory(tmp_path: Path) -> None:
    program, _, _ = HONEST["tied"]()
    read, _ = read_program(save(program, tmp_path / "m.pt2"))
    first, second = (read.state_dict[f"layers.{name}.weight"] for name in ("a-b", "3x3 c"))
    assert first.data_ptr() == second.data_ptr()


def test_guard_still_stops_an_input_that_it_was_not_traced_for(tmp_path: Path) -> None:
    program = torch.export.export(
        Affine().eval(), pt2_attacks.INPUT, {"gain": None}, dynamic_shapes={"x": BATCH, "gain": None}
    )
    _, module = read_program(save(program, tmp_path / "m.pt2"))
    assert module(torch.ones(4, 4), gain=None).shape == (4, 3)
    with pytest.raises(AssertionError, match=r"Guard failed: x.size\(\)\[0\] % 2 == 0"):
        module(torch.ones(3, 4), gain=None)


def test_sample_inputs_are_not_read(tmp_path: Path) -> None:
    archive = Archive.of(honest_program())
    archive.records["data/sample_inputs/model.pt"] = b"no pickle"
    program, module = read_program(archive.write(tmp_path / "m.pt2"))
    assert program.example_inputs is not None
    (x,), keywords = program.example_inputs
    assert (x.shape, x.dtype, x.sum()) == ((2, 4), torch.float32, 0)
    assert keywords["gain"].shape == (3,)
    assert module(*pt2_attacks.INPUT, gain=torch.ones(3)).shape == (2, 3)


def changed(tmp_path: Path, change: Callable[[Archive], object]) -> Path:
    archive = Archive.of(honest_program())
    change(archive)
    return archive.write(tmp_path / "m.pt2")


def set_weight(name: str, **changes: Any) -> Callable[[Archive], None]:
    def change(archive: Archive) -> None:
        archive.weights["config"][name]["tensor_meta"] |= changes

    return change


def set_target(target: str) -> Callable[[Archive], None]:
    def change(archive: Archive) -> None:
        archive.node("linear")["target"] = target

    return change


def set_model(**changes: Any) -> Callable[[Archive], None]:
    return lambda archive: archive.model.update(changes)


def set_record(**changes: bytes) -> Callable[[Archive], None]:
    return lambda archive: archive.records.update(changes)


HUGE = {"sizes": [{"as_int": 1 << 40}, {"as_int": 4}], "strides": [{"as_int": 0}, {"as_int": 1}]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (set_weight("linear.weight", sizes=[{"as_int": 3}, {"as_int": 5}]), "does not fit into 48 bytes"),
        (set_weight("linear.weight", storage_offset={"as_int": 1}), "does not fit into 48 bytes"),
        (set_weight("linear.weight", storage_offset={"as_int": -1}), "is no dense tensor"),
        (set_weight("linear.weight", **HUGE), "does not fit into 48 bytes"),
        (set_weight("linear.weight", sizes=[{"as_int": 2}, {"as_int": 4}]), r"is float32 \[2, 4\]"),
        (set_weight("linear.weight", dtype=6), r"is float16 \[3, 4\], and the graph takes float32 \[3, 4\]"),
        (set_weight("linear.weight", device={"type": "cuda", "index": 0}), "tensors on the device 'cuda'"),
        (lambda archive: archive.records.pop("data/weights/weight_0"), "data/weights/weight_0"),
        (lambda archive: archive.records.update({"data/weights/weight_0": b""}), "does not fit into 0 bytes"),
        (set_record(byteorder=b"big"), "big-endian"),
        (set_record(archive_version=b"9"), "another archive format or version"),
        (set_model(verifiers=["EDGE"]), "a program of the dialect 'EDGE'"),
        (set_model(range_constraints={"u999999999": {"min_val": 0, "max_val": 1}}), "the symbol 'u999999999'"),
        (set_target("torch.os.system"), "the operator 'torch.os.system'"),
        (set_target("torch.ops.load_library"), "the operator 'torch.ops.load_library'"),
        (set_target("torch.ops.aten.save.default"), "the operator"),  # which only TorchScript knows
        (set_target("torch.ops.aten._cudnn_rnn.default"), "the operator"),
        (set_target("torch.ops.inductor.resize_storage_bytes_.default"), "the operator"),
        (set_target("torch.ops.aten.einsum.default"), "is not a torch.export program"),
        (
            set_model(schema_version={"major": 99, "minor": 1}, torch_version="9.9.0"),
            r"was written by torch 9\.9\.0, and torch 2\.\S+ cannot read it",
        ),
        (set_model(schema_version={"major": 99, "minor": 1}), "is not a torch.export program"),
    ],
)
def test_archive_that_does_not_add_up_is_refused(
    change: Callable[[Archive], object], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read_program(changed(tmp_path, change))


def test_weights_of_another_shape_never_reach_a_kernel_that_trusts_them(tmp_path: Path) -> None:
    """oneDNN's LSTM crashes the process on these."""
    program, _, _ = HONEST["lstm"]()
    archive = Archive.of(program)
    for config in (
        archive.weights["config"]["weight_hh_l0"]["tensor_meta"],
        archive.graph["tensor_values"]["p_weight_hh_l0"],
    ):
        config |= {"sizes": [{"as_int": 16}, {"as_int": 2}], "strides": [{"as_int": 2}, {"as_int": 1}]}
    with pytest.raises(CheckpointError, match=r"is not a torch\.export program"):
        read_program(archive.write(tmp_path / "m.pt2"))


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node["inputs"][1]["arg"]["as_tensors"].pop(),
        lambda node: node["inputs"][2]["arg"]["as_tensors"].pop(),
        lambda node: node["inputs"][2]["arg"]["as_tensors"].clear(),
        lambda node: node["inputs"][3].update(arg={"as_bool": False}),
        lambda node: node["inputs"][4].update(arg={"as_int": 3}),
        lambda node: node["inputs"][4].update(arg={"as_int": 0}),
        lambda node: node["inputs"][7].update(arg={"as_bool": False}),
    ],
    ids=["states", "weights", "no weights", "biases", "more layers", "no layers", "directions"],
)
@pytest.mark.parametrize("inside", [False, True], ids=["above", "inside a branch"])
def test_recurrent_layer_never_reads_past_its_weights(
    change: Callable[[Any], object], inside: bool, tmp_path: Path
) -> None:
    """ATen's kernels do, and crash the process."""
    layer = nn.LSTM(8, 4, batch_first=True, bidirectional=True)
    program = torch.export.export(InsideNoGrad(layer) if inside else layer, (IMAGES[0],))
    archive = Archive.of(program)
    graph = archive.graph
    if inside:
        branch = archive.node("wrap_with_set_grad_enabled")["inputs"][1]["arg"]["as_graph"]["graph"]
        graph = branch
    change(next(node for node in graph["nodes"] if node["target"] == "torch.ops.aten.lstm.input"))
    with pytest.raises(CheckpointError, match=r"a recurrent layer has another number|expects two hidden states"):
        read_program(archive.write(tmp_path / "m.pt2"))


class InsideNoGrad(nn.Module):
    """Calls a layer without gradients, so that it stands in a graph of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = self.layer(x)[0]
        return y + 1


def test_compressed_archive_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    archive = Archive.of(honest_program())
    archive.records["data/weights/weight_0"] = bytes(1 << 26)
    path = archive.write(tmp_path / "m.pt2", compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="compressed or overlapping records"):
        read_program(path)


def test_json_that_is_too_large_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported_program, "MAX_JSON_BYTES", 1000)
    with pytest.raises(CheckpointError, match="has more than 1000 bytes"):
        read_program(changed(tmp_path, lambda archive: archive))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive", bytes(1000)])
def test_file_that_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not a torch\.export program"):
        read_program(tmp_path / "m.pt2")


def test_json_of_great_depth_is_refused(tmp_path: Path) -> None:
    archive = Archive.of(honest_program())
    path = archive.write(tmp_path / "m.pt2")
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    records["archive/models/model.json"] = b'{"graph_module": ' + b"[" * 100_000
    with zipfile.ZipFile(path, "w") as file:
        for name, data in records.items():
            file.writestr(name, data)
    with pytest.raises(CheckpointError, match=r"is not a torch\.export program"):
        read_program(path)


SEEDS = range(2)


@pytest.mark.parametrize("seed", SEEDS)
def test_mutated_archive_is_read_or_refused_and_nothing_else(seed: int, tmp_path: Path) -> None:
    """100 files a seed. None takes long, or much memory."""
    rng = random.Random(seed)
    originals = [Archive.of(HONEST[name]()[0]) for name in ("affine", "dynamic sizes", "branches", "inputs", "lstm")]
    read = 0
    for _ in range(100):
        archive = copy.deepcopy(rng.choice(originals))
        path = tmp_path / "m.pt2"
        if rng.random() < 0.3:
            path.write_bytes(mutate_bytes(archive.write(path).read_bytes(), rng))
        else:
            mutate_json(rng.choice([archive.model] * 3 + [archive.weights, archive.constants]), rng)
            archive.write(path)
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        try:
            read_program(path)
            read += 1
        except CheckpointError:
            pass
        assert time.monotonic() - started < 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19  # KiB: half a GiB
    assert 0 < read < 100
