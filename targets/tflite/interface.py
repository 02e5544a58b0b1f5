"""The interface of a ``.tflite`` file: names, number types and metadata.

All functions but `read_metadata` change a ``ModelT`` in place (see `flatbuffer`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ai_edge_litert import schema_py_generated as schema

from pipeline.core import Model, TargetError
from targets.tflite import flatbuffer

Io = Literal["int8", "uint8", "float32"]
Layout = Literal["nchw", "nhwc"]

METADATA = "edgewright"
"""Name of the metadata buffer, which holds JSON (see `describe`)."""


def name_signature(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the default signature's ``args_<i>`` and ``output_<i>`` the model's own names and order.

    Raises:
        TargetError: The converter dropped an input that no operator reads.
    """
    signature = model.signatureDefs[0]
    for ports, names in ((signature.inputs, inputs), (signature.outputs, outputs)):
        ports.sort(key=lambda port: int(port.name.decode().rpartition("_")[2]))
        if len(ports) != len(names):
            raise TargetError(
                f"the converted model has {len(ports)} ports where the model has {len(names)}: {', '.join(names)}"
            )
        for port, port_name in zip(ports, names, strict=True):
            port.name = port_name.encode()
    model.subgraphs[0].inputs = [port.tensorIndex for port in signature.inputs]
    model.subgraphs[0].outputs = [port.tensorIndex for port in signature.outputs]


def exchange(model: Any, io: Io) -> None:
    """Let the integer inputs and outputs of an int8 model be ``io``: unsigned integers, or the real values.

    uint8 with zero point z + 128 stands for the same reals as int8 with z.
    """
    if io == "int8":
        return
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    for ports in (graph.inputs, graph.outputs):
        entering = ports is graph.inputs
        for position, index in enumerate(ports):
            if flatbuffer.dtype_name(graph.tensors[index]) != "INT8":
                continue
            outside = flatbuffer.add_tensor_like(graph, index, dtype=io)
            pair = ([outside], int(index)) if entering else ([int(index)], outside)
            name = "DEQUANTIZE" if io == "float32" and not entering else "QUANTIZE"
            graph.operators.insert(0 if entering else len(graph.operators), flatbuffer.new_operator(model, name, *pair))
            ports[position] = outside
            for port in signature.inputs if entering else signature.outputs:
                if port.tensorIndex == index:
                    port.tensorIndex = outside


def describe(tflite_model: Any, model: Model, *, variant: str, layout: Layout) -> None:
    """Put what an application needs to know into the file, as JSON.

    Holds labels in the order of the logits, how an image becomes the input (``(x * scale - mean) / std``, after resize
    and crop), the inputs' original shapes and their layout here, and the hash of the recipe that made the model.
    """
    inputs = [
        spec.model_dump(mode="json", include={"name", "shape", "dtype"})
        | {"layout": layout if len(spec.shape) == 3 else None}
        for spec in model.inputs
    ]
    facts = {
        "producer": f"edgewright {version('edgewright')}",
        "recipe_sha256": model.recipe_sha256,
        "variant": variant,
        "inputs": inputs,
        "outputs": model.outputs,
        "classes": model.classes,
        "preprocessing": model.preprocessing.model_dump(mode="json", exclude={"layout"}),
    }
    entry = schema.MetadataT()
    entry.name = METADATA.encode()
    entry.buffer = flatbuffer.add_buffer(tflite_model, json.dumps(facts).encode())
    tflite_model.metadata = [*(tflite_model.metadata or []), entry]


def read_metadata(model: Path | bytes) -> dict[str, Any] | None:
    """What `describe` wrote; None in a file that another tool wrote, or that is no model."""
    content = model if isinstance(model, bytes) else model.read_bytes()
    if content[4:8] != flatbuffer.IDENTIFIER:
        return None
    root = schema.Model.GetRootAs(content)
    for position in range(root.MetadataLength()):
        entry = root.Metadata(position)
        if entry.Name() == METADATA.encode():
            facts: dict[str, Any] = json.loads(root.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
            return facts
    return None
