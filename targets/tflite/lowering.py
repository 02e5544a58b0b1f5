"""From a program to a ``.tflite`` file: integers only where the program is quantized, FP32 otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.core import ModelArtifact, TargetError
from pipeline.program import capture, example_inputs
from pipeline.target import Lowered
from targets.tflite import flatbuffer, forms
from targets.tflite.sdk import litert_torch, quiet

BATCH_SIZE = 1
SAME_SCALE = "violate the same scale constraint"  # the converter merged two sets of parameters that are meant to differ


def lower(artifact: ModelArtifact, out_dir: Path, *, name: str, goal: forms.Goal = "cpu") -> Lowered:
    """Write ``out_dir/name.tflite`` for batch 1, its signature named as the model's inputs and outputs.

    Raises:
        TargetError: The converter has no TFLite form for the program; the message holds the converter's reason.
    """
    path = out_dir / f"{name}.tflite"
    program = capture(artifact.module, artifact.inputs, batch_size=BATCH_SIZE).module()
    forms.rewrite(program, goal)
    inputs = example_inputs(artifact.inputs, BATCH_SIZE)
    notes: tuple[str, ...] = ()
    try:
        content = convert(program, inputs, quantized=artifact.quantized)
    except TargetError as error:
        if SAME_SCALE not in error.problem:
            raise
        apart = forms.keep_requantizations_apart(program)
        notes = (f"{apart} changes of quantization parameters pass through float",)
        content = convert(program, inputs, quantized=artifact.quantized)
    model = flatbuffer.read_model(content)
    name_signature(model, [spec.name for spec in artifact.inputs], artifact.outputs)
    flatbuffer.write_model(flatbuffer.serialize(model), path)
    return Lowered(
        path=path,
        variant="int8" if artifact.quantized else "fp32",
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        batch_size=BATCH_SIZE,
        notes=notes,
    )


def convert(module: nn.Module, inputs: tuple[Tensor, ...], *, quantized: bool) -> bytes:
    """A module as TFLite bytes through litert-torch (https://github.com/google-ai-edge/litert-torch).

    Args:
        quantized: Whether the module is a Q/DQ graph, whose quantizers become the integer types of TFLite.

    Raises:
        TargetError: The converter refused it.
    """
    converter = litert_torch()
    module.training = False  # a captured program has no train mode, but is born with the flag set
    try:
        with quiet() as log:
            edge_model = converter.convert(module, inputs, quant_config=_static_quantization() if quantized else None)
            return bytes(edge_model.model_content())
    except Exception as error:  # the converter raises a different class for every step that can fail
        raise TargetError(
            f"litert-torch cannot lower this model: {_reason(error, log.text)}",
            fix="leave the layer in float with quantize: {skip: [...]}, or rewrite it with other operators",
        ) from error


def _static_quantization() -> Any:
    """Tells the converter to read Q/DQ pairs as static quantization. The quantizer it names annotates nothing here."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))


def _reason(error: Exception, native_log: str) -> str:
    """The first line that says what is wrong: MLIR's own error where there is one, else the exception's."""
    said_by_mlir = (line.partition("error:")[2].strip() for line in native_log.splitlines() if "error:" in line)
    said_by_python = (line.strip() for line in str(error).splitlines() if line.strip())
    return next(said_by_mlir, "") or next(said_by_python, "") or type(error).__name__


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
