"""The JSON parts of a ``.pt2`` archive, checked field by field while they become torch's own dataclasses.

torch reads them without a check and then puts names into source code, imports modules that a tree of inputs names, and
looks operators up by ``getattr`` from the ``torch`` module. Here every text field has a rule, and a field without a
rule is refused, so that a field that a newer torch adds is not let through by accident.

Schema: https://github.com/pytorch/pytorch/blob/main/torch/_export/serde/schema.py
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import keyword
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch._export.serde import schema
from torch._export.serde.union import _Union

from pipeline.models.expressions import KEY, SYMBOL, UnsafeProgramError, checked_guard, parse_expression

_NAME = re.compile(r"[A-Za-z_]\w{0,511}", re.ASCII)
_PAYLOAD = re.compile(r"(weight|tensor)_\d{1,9}", re.ASCII)
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", re.ASCII)
_SIZE = re.compile(r"[\w +*/()-]{1,512}", re.ASCII)
_MAX_INTEGER = 2**63

_CONTROL_FLOW = frozenset(
    f"torch.ops.higher_order.{name}"
    for name in ("cond", "while_loop", "map_impl", "scan", "wrap_with_set_grad_enabled", "wrap_with_autocast")
)
"""Operators that run a part of the graph that stands in the file."""

_OF_SIZES = frozenset(
    (
        *(f"_operator.{name}" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos")),
        *(f"_operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "getitem")),
        *(f"torch.sym_{name}" for name in ("int", "float", "ite", "max", "min", "not", "sqrt")),
        "math.trunc",
    )
)
"""Python's own functions that torch.export leaves in a graph, to compute sizes."""

_OF_VMAP = frozenset(
    f"torch._functorch.predispatch.{name}"
    for name in (
        *("_add_batch_dim", "_remove_batch_dim", "_vmap_increment_nesting", "_vmap_decrement_nesting"),
        "lazy_load_decompositions",
    )
)

_NAMESPACES = frozenset(("aten", "quantized_decomposed"))
_PRIVATE = frozenset(
    (
        *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_assert_async", "_assert_scalar", "_assert_tensor_metadata"),
        *("_cdist_forward", "_conj", "_convolution", "_efficientzerotensor", "_embedding_bag", "_fft_c2c", "_fft_c2r"),
        *("_fft_r2c", "_local_scalar_dense", "_log_softmax", "_native_batch_norm_legit", "_neg_view", "_prelu_kernel"),
        *("_native_batch_norm_legit_functional", "_native_batch_norm_legit_no_training", "_pdist_forward"),
        *("_native_multi_head_attention", "_reshape_alias", "_safe_softmax", "_shape_as_tensor", "_softmax", "_stack"),
        *(
            "_scaled_dot_product_attention_math",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_to_copy",
            "_trilinear",
        ),
        *(
            "_transformer_encoder_layer_fwd",
            "_unique2",
            "_unsafe_index",
            "_unsafe_index_put",
            "_unsafe_view",
            "_weight_norm",
        ),
        *("_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_upsample_nearest_exact1d"),
        *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_weight_norm_interface"),
    )
)
"""Operators of ATen with a leading underscore that a graph of a network holds. The others check their inputs less."""

_TOUCHES_FILES = frozenset(("from_file",))
_BACKENDS = ("cudnn_", "fbgemm_", "miopen_", "mkldnn_", "quantized_", "to_mkldnn")
_KEPT_METADATA = ("stack_trace", "nn_module_stack", "torch_fn")
_TREE_TYPES = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def read_json(kind: Any, data: bytes) -> Any:
    """A dataclass of torch's schema from its JSON text.

    Args:
        kind: The dataclass, such as ``schema.ExportedProgram``.

    Raises:
        UnsafeProgramError: A field holds something that could run code.
        ValueError, KeyError, TypeError, RecursionError: It is not JSON of this dataclass.
    """
    return _read(kind, json.loads(data), _no_text)


def _read(kind: Any, data: Any, text: Callable[[str], Any]) -> Any:
    """A value of a type of the schema; ``text`` is the rule for the strings in it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _read(arguments[0], data, text)
    if origin in (typing.Union, types.UnionType):
        return None if data is None else _read(arguments[0], data, text)
    if origin is list:
        return [_read(arguments[0], item, text) for item in _of(list, data)]
    if origin is dict:
        return {_key(text, key): _read(arguments[1], value, text) for key, value in _of(dict, data).items()}
    if isinstance(kind, type) and issubclass(kind, _Union):
        return _read_union(kind, data)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data)
    return _read_scalar(kind, data, text)


def _read_scalar(kind: Any, data: Any, text: Callable[[str], Any]) -> Any:
    if kind is str:
        return text(_of(str, data))
    if kind is float:
        return float(data if data in ("Infinity", "-Infinity", "NaN") else _of((int, float), data))
    if kind is int and abs(_of(int, data)) > _MAX_INTEGER:
        raise ValueError(f"{data} is no 64-bit integer")
    if issubclass(kind, enum.IntEnum):
        return kind(_of(int, data))
    return _of(kind, data)


def _read_union(kind: Any, data: Any) -> Any:
    ((name, value),) = _of(dict, data).items()
    if name not in _hints(kind):
        raise ValueError(f"{kind.__name__} has no {name}")
    return kind.create(**{name: _read(_hints(kind)[name], value, _rule(kind, name))})


def _read_dataclass(kind: Any, data: Any) -> Any:
    values = {
        name: _read_metadata(data[name])
        if (kind, name) == (schema.Node, "metadata")
        else _read(hint, data[name], _rule(kind, name))
        for name, hint in _hints(kind).items()
        if name in _of(dict, data)
    }
    return _CHECKS.get(kind, _unchanged)(kind(**values))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, globalns=vars(schema))
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _of(kind: Any, data: Any) -> Any:
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise TypeError(f"{str(data)[:60]!r} is {type(data).__name__}")
    return data


def _key(rule: Callable[[str], Any], text: str) -> Any:
    return rule(text)


def _unchanged(value: Any) -> Any:
    return value


def _no_text(text: str) -> str:
    raise UnsafeProgramError(f"the text {text[:60]!r} in an unknown place")


def _name(text: str) -> str:
    """A name that torch writes into source code: of a value, an input or a part of the graph."""
    if not _NAME.fullmatch(text) or keyword.iskeyword(text):
        raise UnsafeProgramError(f"the name {text[:60]!r}, which is no identifier")
    return text


def _argument_name(text: str) -> str:
    """An operator's arguments may be called ``from``, or have no name."""
    return text if not text or _NAME.fullmatch(text) else _name(text)


def _path(text: str) -> str:
    """A name of a module, a parameter or a buffer, such as ``layers.0.weight``; empty for the whole."""
    if any(not KEY.fullmatch(part) or part.startswith("__") for part in text.split(".")):
        raise UnsafeProgramError(f"the name {text[:60]!r}")
    return text


def _plain_text(text: str) -> str:
    """A value that torch quotes in source code."""
    if not KEY.fullmatch(text):
        raise UnsafeProgramError(f"the text {text[:60]!r} as an input")
    return text


def _any_text(text: str) -> str:
    """An argument of an operator that is allowed; torch writes it with ``repr``."""
    return text


def _device(text: str) -> str:
    if text != "cpu":
        raise UnsafeProgramError(f"tensors on the device {text[:60]!r}, not on the CPU")
    return text


def _refused(what: str) -> Callable[[str], str]:
    def refuse(text: str) -> str:
        raise UnsafeProgramError(f"{what} {text[:60]!r}")

    return refuse


def _payload(text: str) -> str:
    """A record of the archive. ``custom_obj_…`` and ``opaque_obj_…`` are pickled objects."""
    if not _PAYLOAD.fullmatch(text):
        raise UnsafeProgramError(f"the pickled object {text[:60]!r}")
    return text


def _size(text: str) -> str:
    """A symbol, or a sum such as ``s0 + 1``. torch counts up to the number of an unbacked symbol such as ``u3``."""
    if not SYMBOL.fullmatch(text) and (text.startswith(("u", "z")) or not _SIZE.fullmatch(text)):
        raise UnsafeProgramError(f"the symbol {text[:60]!r}")
    return text


def _verifier(text: str) -> str:
    if text not in ("TRAINING", "ATEN"):
        raise UnsafeProgramError(f"a program of the dialect {text[:60]!r}")
    return text


def _operator(text: str) -> str:
    """The target of a node.

    Raises:
        UnsafeProgramError: It is another function of the ``torch`` module, a custom operator, one that TorchScript
            alone knows, or one that reads or writes files.
    """
    if text in _CONTROL_FLOW | _OF_SIZES | _OF_VMAP:
        return text
    match = _OPERATOR.fullmatch(text)
    if match is None or match[1] not in _NAMESPACES or not _is_allowed(*match.groups()):
        raise UnsafeProgramError(f"the operator {text[:60]!r}")
    return text


@functools.cache
def _is_allowed(namespace: str, name: str, overload: str) -> bool:
    if namespace == "quantized_decomposed":
        from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers its operators
    elif (
        name in _TOUCHES_FILES
        or name.startswith(_BACKENDS)
        or (name.startswith("_") and not name.startswith("__") and name not in _PRIVATE)
    ):
        return False
    try:
        torch._C._dispatch_find_schema_or_throw(f"{namespace}::{name}", overload.removeprefix("default"))
    except RuntimeError:
        return False
    return True


def _tree(text: str) -> str:
    """The nesting of inputs or outputs, rewritten: torch imports modules for enumerations and default factories."""
    version, tree = json.loads(text)
    return json.dumps([_of(int, version), _branch(_of(dict, tree))])


def _branch(tree: dict[str, Any]) -> dict[str, Any]:
    kind, context, children = tree["type"], tree["context"], _of(list, tree["children_spec"])
    if kind is None and context is None and not children:
        return {"type": None, "context": None, "children_spec": []}
    if kind not in _TREE_TYPES:
        raise UnsafeProgramError(f"inputs or outputs in a {str(kind)[:60]!r}")
    keys = json.loads(_of(str, context))
    if kind in ("builtins.tuple", "builtins.list"):
        keys = None if keys is None else _of(type(None), keys)
    elif len(_of(list, keys)) != len(children) or not all(_is_key(key) for key in keys):
        raise UnsafeProgramError(f"inputs or outputs with the keys {context[:60]!r}")
    return {
        "type": kind,
        "context": json.dumps(keys),
        "children_spec": [_branch(_of(dict, child)) for child in children],
    }


def _is_key(key: Any) -> bool:
    return type(key) is int or (isinstance(key, str) and KEY.fullmatch(key) is not None)


def _read_metadata(data: Any) -> dict[str, str]:
    """What later stages read of a node: where it stands in the user's source, and in which of their modules."""
    return {
        name: "".join(character for character in _of(str, data[name]) if character.isprintable() or character == "\n")
        for name in _KEPT_METADATA
        if name in _of(dict, data)
    }


def _check_graph(graph: schema.Graph) -> schema.Graph:
    for value in graph.inputs:
        if value.type == "as_string":
            _plain_text(value.as_string)
    return graph


def _check_call(signature: schema.ModuleCallSignature) -> schema.ModuleCallSignature:
    """The names of keyword arguments become names of a function's parameters."""
    _, tree = json.loads(signature.in_spec)
    if tree["type"] == "builtins.tuple" and len(tree["children_spec"]) == 2:
        keywords = tree["children_spec"][1]
        if keywords["type"] == "builtins.dict":
            for key in json.loads(keywords["context"]):
                _name(_of(str, key))
    return signature


def _check_module(module: schema.GraphModule) -> schema.GraphModule:
    return dataclasses.replace(module, metadata={}, treespec_namedtuple_fields={})


_CHECKS: dict[Any, Callable[[Any], Any]] = {
    schema.Graph: _check_graph,
    schema.GraphModule: _check_module,
    schema.ModuleCallSignature: _check_call,
}

_RULES: dict[Any, dict[str, Callable[[str], Any]]] = {
    schema.Argument: {
        "as_string": _any_text,
        "as_strings": _any_text,
        "as_operator": _refused("the operator as an argument"),
        "as_string_to_argument": _name,
    },
    schema.ConstantValue: {"as_string": _plain_text},
    schema.CustomObjArgument: dict.fromkeys(("name", "class_fqn"), _refused("the custom object")),
    schema.Device: {"type": _device},
    schema.ExportedProgram: {
        "guards_code": checked_guard,
        "opset_version": _name,
        "range_constraints": _size,
        "torch_version": _any_text,
        "verifiers": _verifier,
    },
    schema.Graph: {
        "tensor_values": _name,
        "sym_int_values": _name,
        "sym_bool_values": _name,
        "sym_float_values": _name,
        "custom_obj_values": _refused("the custom object"),
    },
    schema.GraphModule: {"metadata": _any_text, "treespec_namedtuple_fields": _any_text},
    schema.ModuleCallEntry: {"fqn": _path},
    schema.ModuleCallSignature: {"in_spec": _tree, "out_spec": _tree, "forward_arg_names": _name},
    schema.NamedArgument: {"name": _argument_name},
    schema.NamedTupleDef: {"field_names": _name},
    schema.Node: {"target": _operator, "name": _name},
    schema.PayloadConfig: {"config": _path},
    schema.PayloadMeta: {"path_name": _payload},
    schema.SymExpr: {"expr_str": parse_expression},
    **{kind: {"as_name": _name} for kind in (schema.SymIntArgument, schema.SymFloatArgument, schema.SymBoolArgument)},
    **{
        kind: {"name": _name}
        for kind in (schema.GraphArgument, schema.InputToConstantInputSpec, schema.TensorArgument, schema.TokenArgument)
    },
    **{
        kind: {"parameter_name": _path, "buffer_name": _path, "tensor_constant_name": _path, "user_input_name": _name}
        for kind in (
            *(schema.InputToParameterSpec, schema.InputToBufferSpec, schema.InputToTensorConstantSpec),
            *(schema.BufferMutationSpec, schema.ParameterMutationSpec),
            *(schema.GradientToParameterSpec, schema.GradientToUserInputSpec, schema.UserInputMutationSpec),
        )
    },
    schema.InputToCustomObjSpec: {"custom_obj_name": _refused("the custom object")},
}
"""For every dataclass, the rule of each field with text in it: of its value, of its items, or of its keys."""


def _rule(kind: type, name: str) -> Callable[[str], Any]:
    return _RULES.get(kind, {}).get(name, _no_text)
