"""The recipe: what to do to which model, with which data, for which targets.

Every key of the YAML is a field of a frozen pydantic model here, so ``edgewright schema recipe`` can print the JSON
Schema, an editor can complete it, and an unknown key is refused with the nearest valid one.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    field_serializer,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails

from pipeline.core import (
    Distinct,
    FilePath,
    Flag,
    Integer,
    Number,
    PositiveInt,
    Preprocessing,
    RecipeError,
    Setting,
    TensorSpec,
)
from pipeline.core.files import read_small
from pipeline.core.strict_yaml import parse_yaml
from pipeline.data.source import FACTORY, DataSource, Factory, source_of_name

logger = logging.getLogger(__name__)

NotNegative = Annotated[Integer, Field(ge=0)]
Ratio = Annotated[Number, Field(gt=0, le=1)]
TargetName = Literal["onnx", "tflite", "coreml"]
Observer = Literal["minmax", "moving_average", "percentile", "mse", "entropy", "output_mse"]
Importance = Literal["l1", "l2", "bn_scale", "taylor", "activation"]
ModuleNames = tuple[Annotated[str, Field(min_length=1)], ...]

MAX_BYTES = 1 << 20
"""Of a recipe's file."""

MAX_INPUT_VALUES = 2**31 - 1
"""Of one sample of one input: what 32-bit indices of the targets' formats can count."""


_WEIGHTS_ONLY = (".safetensors", ".json")
"""Endings of files that hold no network."""


class ModelSource(Setting):
    """Where the FP32 model comes from: a factory and its weights, or a program that holds both."""

    checkpoint: FilePath | None = Field(
        None, description="weights for the factory, or a program; without one, the factory gives trained weights itself"
    )
    factory: Factory | None = Field(None, description="module:callable that builds the network")
    huggingface: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="folder that save_pretrained of transformers wrote, or a model on the hub: owner/name"
    )
    kwargs: dict[str, Any] = Field({}, description="arguments of the factory")
    inputs: tuple[TensorSpec, ...] = Field((), description="names and shapes without the batch dimension")
    outputs: tuple[str, ...] = Field(
        (), description="names of the outputs, in their order; the model's own when absent"
    )
    classes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="class names, in the order of the logits"
    )
    states: dict[str, str] = Field(
        {}, description="{input: output}: the output is the input's value in the next call; a sample is a sequence"
    )
    weights: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="key of the weights in the checkpoint, such as ema, where several there fit the network"
    )
    expect: dict[str, Number] | None = Field(
        None,
        description="the original's metrics on the evaluation set, as {top1: 0.93}: a run stops where it is off; "
        "without it, a run stops where the first metric is no better than chance; {} asks for no check",
    )
    trust: Flag = Field(False, description="read a .pt2 with torch, which may run code in it")

    @property
    def name(self) -> Path | str:
        """What messages call the model: its checkpoint, or the factory that gives its weights."""
        return self.checkpoint or self.huggingface or str(self.factory)

    @model_validator(mode="after")
    def _folder_holds_all(self) -> ModelSource:
        for key in ("checkpoint", "factory", "kwargs", "weights", "trust"):
            if self.huggingface and getattr(self, key):
                raise ValueError(f"huggingface names the network and its weights: remove {key}")
        return self

    @model_validator(mode="after")
    def _factory_needs_inputs(self) -> ModelSource:
        if self.huggingface:
            return self
        if self.checkpoint is None:
            if not self.factory:
                raise ValueError("names no model: add checkpoint: a file, factory: module:callable, or huggingface")
            if self.weights:
                raise ValueError("weights names a key of a checkpoint: add checkpoint, or remove weights")
        if self.checkpoint is not None and self.checkpoint.suffix == ".pt2":
            for key in ("factory", "kwargs", "weights"):
                if getattr(self, key):
                    raise ValueError(f"a .pt2 checkpoint holds its own program: remove {key}")
        elif self.trust:
            raise ValueError("only a .pt2 checkpoint can be trusted, any other runs no code: remove trust")
        elif not self.factory and (self.checkpoint is None or self.checkpoint.suffix in _WEIGHTS_ONLY):
            raise ValueError("weights alone do not make a model: add factory: module:callable")
        elif self.factory and not self.inputs:
            raise ValueError("add inputs: [{name: image, shape: [3, 224, 224]}] (shapes without the batch)")
        return self

    @model_validator(mode="after")
    def _states_are_apart(self) -> ModelSource:
        names = list(self.states.values())
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"states: the output {twice!r} becomes two states: give each one of its own")
        return self

    @model_validator(mode="after")
    def _inputs_have_values(self) -> ModelSource:
        for index, spec in enumerate(self.inputs):
            if spec.open_sizes and self.states:
                raise ValueError(f"inputs[{index}].shape: {spec.written} has open sizes, and states need fixed ones")
            closed = [size for axis, size in enumerate(spec.shape) if axis not in {o.axis for o in spec.open_sizes}]
            if not all(size > 0 for size in closed):
                raise ValueError(
                    f"inputs[{index}].shape: {list(spec.shape)} must hold positive sizes, without the batch"
                )
            if math.prod(spec.shape) > MAX_INPUT_VALUES:
                raise ValueError(f"inputs[{index}].shape: {list(spec.shape)} has more than {MAX_INPUT_VALUES} values")
            if spec.name in [other.name for other in self.inputs[:index]]:
                raise ValueError(f"inputs[{index}].name: {spec.name!r} is there twice")
        return self


class DataConfig(Setting):
    """The three sets of samples. Only ``evaluation`` is reported on, and it never influences a choice."""

    preprocessing: Preprocessing = Field(Preprocessing(), description="how stored samples become inputs, in every set")
    train: Annotated[DataSource | None, BeforeValidator(source_of_name)] = Field(
        None, description="samples to train on and, held out, to choose by"
    )
    calibration: Annotated[
        DataSource | None,
        BeforeValidator(source_of_name, json_schema_input_type=DataSource | Literal["synthetic"] | None),
    ] = Field(None, description="samples from which quantize reads ranges; it needs them")
    evaluation: Annotated[DataSource, BeforeValidator(source_of_name)] = Field(
        description="samples that results are reported on; they influence no choice"
    )

    @model_validator(mode="after")
    def _only_calibration_is_made(self) -> DataConfig:
        for role in ("train", "evaluation"):
            source = getattr(self, role)
            if source is not None and source.synthetic:
                raise ValueError(f"{role}: only calibration can be synthetic: give real samples, or remove it")
        return self


class Augmentation(Setting):
    """Random changes to training images; all off by default."""

    horizontal_flip: Flag = Field(False, description="mirror half of the images")
    shift: Integer = Field(0, ge=0, description="pixels of zero padding around a random crop of the original size")
    rotation: Number = Field(0.0, ge=0, le=180, description="largest rotation in degrees, in either direction")
    color_jitter: Number = Field(
        0.0, ge=0, le=1, description="largest relative change of brightness, contrast and saturation"
    )
    erasing: Number = Field(0.0, ge=0, le=1, description="share of images in which a random rectangle is erased")
    mixup: Number = Field(0.0, ge=0, le=1, description="share of batches whose images are blended in pairs")
    cutmix: Number = Field(0.0, ge=0, le=1, description="share of batches whose images exchange a rectangle in pairs")

    @model_validator(mode="after")
    def _mixed_at_most_once(self) -> Augmentation:
        if self.mixup + self.cutmix > 1:
            raise ValueError("a batch is mixed in at most one way: mixup and cutmix must add up to 1 or less")
        return self


class TrainingConfig(Setting):
    """Settings of the training loop, shared by every stage that trains."""

    epochs: PositiveInt = Field(3, le=100_000, description="passes over the training set")
    batch_size: PositiveInt = Field(128, description="samples in each step")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW")
    learning_rate: Number = Field(0.05, gt=0, description="peak of the one-cycle schedule; AdamW needs about 0.001")
    momentum: Number = Field(
        0.9, gt=0, lt=1, description="mean momentum; the one-cycle schedule varies it by 0.05 in either direction"
    )
    weight_decay: Number = Field(5e-4, ge=0, description="how strongly weights are pulled to zero")
    warmup_ratio: Number = Field(0.2, ge=0, lt=1, description="share of all steps during which the learning rate rises")
    max_grad_norm: Number | None = Field(5.0, gt=0, description="longer gradients are clipped to this norm; null: none")
    ema: Number | None = Field(None, gt=0, lt=1, description="decay of a moving average of the weights, per step")
    early_stop: PositiveInt | None = Field(
        None, description="stop after this many epochs without a better held-out metric, and keep the best epoch"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: mixed precision, where the device supports it"
    )
    checkpoint_minutes: Number = Field(5.0, ge=0, description="how often the state of a long training is saved")
    augment: Augmentation = Field(Augmentation(), description="random changes to training images")


class TeacherConfig(TrainingConfig):
    """Training with the original as teacher (Hinton et al. 2015, https://arxiv.org/abs/1503.02531)."""

    temperature: Number = Field(4.0, gt=0, description="divides the logits of student and teacher in the loss")
    alpha: Number = Field(
        0.9, ge=0, le=1, description="weight of the loss against the teacher; the loss against the labels gets the rest"
    )

    @model_validator(mode="after")
    def _mixed_images_need_the_teacher(self) -> TeacherConfig:
        if self.alpha == 0 and self.augment.mixup + self.augment.cutmix > 0:
            raise ValueError("only the teacher can label mixed images: raise alpha, or remove mixup and cutmix")
        return self


class Sparsity(Setting):
    """The smallest weights of every layer are set to zero. No runtime here gains size or speed from the zeros."""

    ratio: Number | None = Field(None, gt=0, lt=1, description="share of zeros in every layer")
    pattern: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="[2, 4]: keep the 2 largest of every 4 consecutive weights along the input axis"
    )

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Sparsity:
        if (self.ratio is None) == (self.pattern is None):
            raise ValueError("give either ratio or pattern")
        if self.pattern is not None and self.pattern[0] >= self.pattern[1]:
            raise ValueError("pattern: [N, M] keeps N of M, so N must be smaller than M")
        return self


class PruneConfig(Setting):
    """Structured pruning: whole channels are removed until every budget is met. Ratios are shares of the original.

    Residual blocks are removed first (``blocks_ratio``), then channels; then single weights are set to zero
    (``sparsity``). With ``iterations``, the budgets are reached in equal relative steps, each followed by training
    (``recover``).
    """

    macs_ratio: Ratio | None = Field(None, description="multiply-accumulates to keep")
    parameters_ratio: Ratio | None = Field(None, description="parameters to keep")
    size_ratio: Ratio | None = Field(None, description="bytes of FP32 weights to keep")
    latency_ratio: Ratio | None = Field(None, description="FP32 latency on latency_target to keep")
    max_macs: PositiveInt | None = Field(None, description="multiply-accumulates of one sample")
    max_parameters: PositiveInt | None = Field(None, description="number of parameters")
    max_size_bytes: PositiveInt | None = Field(None, description="bytes of FP32 weights")
    max_latency_ns: PositiveInt | None = Field(None, description="FP32, one thread, batch 1, on this machine")
    latency_target: TargetName | None = Field(None, description="target on which latency is measured")
    importance: Importance = Field("l2", description="how the importance of a channel is measured")
    allocation: Literal["importance", "sensitivity"] = Field(
        "importance",
        description="what decides how much each layer loses: its channels' importance or its measured sensitivity",
    )
    round_to: PositiveInt = Field(8, description="the number of kept channels is a multiple of this")
    max_layer_ratio: Ratio = Field(0.9, description="never remove more than this share of one layer")
    blocks_ratio: Ratio | None = Field(
        None, description="share of residual blocks to remove entirely: those that affect the outputs least"
    )
    sparsity: Sparsity | None = Field(None, description="set single weights to zero, after channels were removed")
    iterations: PositiveInt = Field(1, description="reach the budgets in this many rounds")
    recover: TeacherConfig | None = Field(None, description="training after every round, with the original as teacher")
    skip: ModuleNames = Field(
        (), description="modules that are not pruned: names, patterns (head.*) or types (type:Linear)"
    )

    @model_validator(mode="after")
    def _has_a_budget(self) -> PruneConfig:
        timed = self.latency_ratio is not None or self.max_latency_ns is not None
        counted = (self.macs_ratio, self.parameters_ratio, self.size_ratio)
        limits = (self.max_macs, self.max_parameters, self.max_size_bytes)
        others = (self.blocks_ratio, self.sparsity)
        if not timed and all(wanted is None for wanted in (*counted, *limits, *others)):
            raise ValueError("give a budget, such as macs_ratio")
        if self.iterations > 1 and self.recover is None:
            raise ValueError("without training, several iterations equal one: add recover: {epochs: 1}")
        if timed and self.latency_target is None:
            raise ValueError("say where latency is measured: latency_target: onnx")
        if not timed and self.latency_target is not None:
            raise ValueError("latency_target needs a limit: add latency_ratio or max_latency_ns, or remove it")
        return self


class Features(Setting):
    """A loss on features (outputs of layers) of student and teacher, in addition to the loss on their outputs."""

    kind: Literal["attention", "hint"] = Field(
        "attention",
        description="attention compares attention maps; hint compares features through a learned 1x1 projection",
    )
    weight: Number = Field(1.0, gt=0, description="weight of this loss beside the loss on the outputs")
    layers: dict[str, str] | tuple[str, ...] = Field(
        (),
        description="names of modules, or {student: teacher}; by default the last common one at each resolution",
    )


class Relations(Setting):
    """A loss on the relations between the samples of a batch (Park et al. 2019, https://arxiv.org/abs/1904.05068)."""

    distance: Number = Field(1.0, ge=0, description="weight of the loss on distances of pairs")
    angle: Number = Field(2.0, ge=0, description="weight of the loss on angles of triplets")


class StudentSource(Setting):
    """Another network, which is trained in place of the current model."""

    factory: Factory = Field(description="module:callable that builds the network")
    kwargs: dict[str, Any] = Field({}, description="arguments of the factory")
    checkpoint: FilePath | None = Field(None, description="weights to start from; the factory's own when absent")


class DistillConfig(TeacherConfig):
    """Knowledge distillation from the original."""

    features: Features | None = Field(None, description="a further loss on outputs of layers")
    relations: Relations | None = Field(None, description="a further loss on the relations between samples")
    student: StudentSource | None = Field(None, description="another network to train; the current model when absent")


class QatConfig(TeacherConfig):
    """Quantization-aware training from the best post-training program, with the original as teacher."""

    epochs: PositiveInt = Field(1, le=100_000, description="passes over the training set")
    learning_rate: Number = Field(0.01, gt=0, description="peak of the one-cycle schedule")
    weight_decay: Number = Field(0.0, ge=0, description="how strongly weights are pulled to zero")
    freeze_ratio: Number = Field(0.5, ge=0, le=1, description="share of the steps after which ranges are frozen")


def _held(layers: Any) -> Any:
    """How layers are held: the word ``float`` or, in Python, the type of that name."""
    if not isinstance(layers, dict):
        return layers
    odd = next(((name, value) for name, value in layers.items() if value not in ("float", float)), None)
    if odd is not None:
        problem = f"{odd[0]!r} is {odd[1]!r}, and float is the only choice: layers that are not named are int8"
        raise ValueError(f"{problem}; write {odd[0]!r}: float, or remove it")
    return dict.fromkeys(layers, "float")


class QuantizeConfig(Setting):
    """Static INT8 quantization, calibrated on real data."""

    observers: Annotated[tuple[Observer, ...], Distinct] = Field(
        ("minmax", "output_mse"), min_length=1, description="calibration candidates, tried in this order"
    )
    bias_correction: Flag = Field(
        True, description="correct biases by the mean rounding error, with the better of two methods"
    )
    equalisation: Flag = Field(
        True, description="try to equalise the ranges of channels; kept where it improves SQNR on held-out samples"
    )
    smoothquant: Flag = Field(True, description="the same for linear layers behind layer norms")
    batch_norm: Flag = Field(
        False, description="re-estimate the statistics of batch norms on the calibration samples; useful after pruning"
    )
    adaround: Flag = Field(
        False, description="learn whether each weight is rounded up or down from its layer's outputs; takes minutes"
    )
    mixed_precision: Flag = Field(
        True, description="keep the most sensitive layers in float where the budget requires it"
    )
    sensitivity: Flag = Field(False, description="measure every layer's sensitivity even where the budget is met")
    sensitivity_samples: PositiveInt = Field(64, description="held-out samples to measure sensitivities on")
    qat: QatConfig | None = Field(None, description="quantization-aware training afterwards; needs training data")
    batch_size: PositiveInt = Field(64, description="samples run at once; fewer where activations are large")
    skip: ModuleNames = Field((), description="modules that stay in float: as in layers, each with the value float")
    layers: Annotated[
        dict[Annotated[str, Field(min_length=1)], Literal["float"]],
        BeforeValidator(_held, json_schema_input_type=dict[str, Literal["float"]]),
    ] = Field(
        {},
        description="how layers are held, by name, pattern or type: {head.*: float, type:LayerNorm: float}; all others "
        "are int8, where integer kernels can compute them",
    )


OnnxProvider = Literal["cpu", "coreml", "nnapi", "xnnpack", "qnn", "cuda", "tensorrt"]


class OnnxConfig(Setting):
    """The ONNX Runtime target's options."""

    cpu: Literal["x86", "arm"] | None = Field(None, description="deployment CPU; the host's when absent")
    vnni: Flag | None = Field(None, description="whether an x86 deployment CPU has VNNI; as the host when absent")
    variants: Annotated[tuple[Literal["fp16"], ...], Distinct] = Field(
        (), description="forms of the original to compare with, beside FP32"
    )
    providers: Annotated[tuple[OnnxProvider, ...], Distinct] = Field(
        (), description="execution providers to run on, first choice first; those not in this build are reported"
    )
    ort: Flag = Field(False, description="also write the .ort format of onnxruntime's mobile builds")
    image_input: Flag = Field(False, description="take stored uint8 pixels: the preprocessing becomes part of the file")
    dynamic: dict[str, Annotated[tuple[PositiveInt, ...], Distinct, Field(min_length=1)]] = Field(
        {}, description="per input, axes beside the batch (0) whose size may vary: {image: [2, 3]}"
    )

    @model_validator(mode="after")
    def _vnni_is_of_x86(self) -> OnnxConfig:
        if self.cpu == "arm" and self.vnni is not None:
            raise ValueError("an Arm CPU has no VNNI: remove vnni")
        return self


class CoremlConfig(Setting):
    """The Core ML target's options."""

    deployment_target: Literal["iOS17", "iOS18", "macOS14", "macOS15"] = Field(
        "iOS18", description="the oldest operating system that must be able to load the model"
    )
    batch_sizes: Annotated[tuple[PositiveInt, ...], Distinct] = Field(
        (1, 32), min_length=1, description="batch sizes that the model takes, unless its code fixes the batch"
    )
    compute_units: Literal["all", "cpu_only", "cpu_and_gpu", "cpu_and_ne"] = Field(
        "all", description="processors that Core ML may use when it runs here, on macOS"
    )
    precision: Literal["float16", "float32"] = Field(
        "float16",
        description="arithmetic between an int8 model's integer operators; float32 follows the quantized program "
        "exactly, but cannot run on the Neural Engine",
    )
    image_input: Flag = Field(
        False, description="take images, and do the preprocessing (scale, mean, std) in the model; batch 1"
    )
    classifier: Flag = Field(False, description="also return the class label and probabilities; batch 1")
    variants: Annotated[tuple[Literal["fp16", "int8_weights", "palettized_6bit", "palettized_4bit"], ...], Distinct] = (
        Field((), description="forms of the original to compare with, beside FP32")
    )


EthosU = Literal[
    "ethos-u55-32",
    "ethos-u55-64",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-128",
    "ethos-u85-256",
    "ethos-u85-512",
    "ethos-u85-1024",
    "ethos-u85-2048",
]


class AndroidConfig(Setting):
    """A phone that is connected over adb."""

    benchmark_tool: Path = Field(description="LiteRT's benchmark_model, built for the phone; an absolute path")
    serial: str | None = Field(None, description="as 'adb devices' prints it; the only phone when absent")
    threads: PositiveInt = Field(1, description="threads that the model runs on")


Chip = Annotated[str, Field(pattern=r"^(qualcomm|mediatek|google_tensor):\w+$")]


class TfliteConfig(Setting):
    """The TFLite target's options."""

    npu: Annotated[tuple[EthosU, ...], Distinct] = Field(
        (), description="Arm Ethos-U configurations to compile for, with operators in the NPU's forms"
    )
    optimize_for: Literal["cpu", "npu"] = Field(
        "cpu", description="form of operators for which a CPU delegate and an NPU need different ones (hardswish)"
    )
    io: Literal["int8", "uint8", "float32"] = Field(
        "int8", description="number type of an int8 model's inputs and outputs"
    )
    input_layout: Literal["nchw", "nhwc"] = Field("nchw", description="order of an image's axes at the model's inputs")
    reference_kernels: Flag | None = Field(
        None,
        description="also evaluate with the reference kernels, whose rounding NPUs follow; about 30 times slower than "
        "XNNPACK; by default only where they take less than 20 ms for a sample",
    )
    compare_forms: Flag = Field(
        False,
        description="also convert the int8 model with the operators as they are, and report where these would run; "
        "takes another conversion",
    )
    gpu: Flag = Field(False, description="report what LiteRT's analyzer says about its GPU delegate")
    android: AndroidConfig | None = Field(None, description="a phone to time the model on")
    aot: Annotated[tuple[Chip, ...], Distinct] = Field(
        (),
        description="chips to compile for ahead of time: qualcomm:SM8650, mediatek:MT6989, google_tensor:Tensor_G5",
    )
    variants: Annotated[tuple[Literal["fp16", "int8_dynamic"], ...], Distinct] = Field(
        (), description="forms of the original to compare with, beside FP32"
    )


class TaskConfig(Setting):
    """What the model is for, and so how its accuracy is measured. A bare name is enough for a built-in task."""

    name: str | None = Field(None, description="a built-in task; with metrics, its labels, losses and form are used")
    metrics: Annotated[tuple[Factory, ...], Distinct] = Field(
        (), description="module:callable -> torchmetrics.Metric; the first is the budget's default"
    )
    postprocess: Factory | None = Field(
        None, description="module:callable(outputs, inputs) -> predictions; runs in float outside the model"
    )
    loss: Factory | None = Field(
        None,
        description="module:callable(student, teacher) -> scalar; how far a student's outputs are from the teacher's",
    )
    alphabet: str = Field(
        "", description="the characters of symbols 1, 2, …, for ctc; with a space, words are counted too"
    )
    swap: tuple[tuple[NotNegative, NotNegative], ...] | None = Field(
        None, description="pairs of keypoints, from 0, that change places when an image is flipped; [] where none do"
    )

    data_range: Number | None = Field(
        None, gt=0, description="the largest value of a task image's images, 1 or 255; as the outputs are when absent"
    )

    @model_validator(mode="after")
    def _says_something(self) -> TaskConfig:
        if self.name is None and not self.metrics:
            raise ValueError("give the name of a built-in task, or metrics of your own")
        if self.alphabet and self.name != "ctc":
            raise ValueError("alphabet belongs to the task ctc: remove it")
        if self.swap is not None and self.name != "keypoints":
            raise ValueError("swap belongs to the task keypoints: remove it")
        if self.data_range is not None and self.name != "image":
            raise ValueError("data_range belongs to the task image: remove it")
        points = [point for pair in self.swap or () for point in pair]
        if len(points) != len(set(points)):
            raise ValueError("swap: a keypoint changes places with one other, and is named once")
        return self


class Budget(Setting):
    """How much worse one metric may get over the whole run."""

    metric: str | None = Field(None, min_length=1, description="the task's first metric when absent")
    max_drop: Number | None = Field(
        None,
        ge=0,
        description="in the metric's own unit: of a ratio, 0.01 is one percentage point, which is the default",
    )
    max_drop_relative: Number | None = Field(None, ge=0, le=1, description="as a share of the original's value")

    @model_validator(mode="after")
    def _one_limit(self) -> Budget:
        if self.max_drop is not None and self.max_drop_relative is not None:
            raise ValueError("give either max_drop or max_drop_relative")
        return self


class OneOf(Setting):
    """A list entry that is either a bare name or ``{name: {option: value}}``."""

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, entry: Any) -> Any:
        if isinstance(entry, str):
            return {entry: {}}
        if isinstance(entry, dict):
            return {name: {} if options is None else options for name, options in entry.items()}
        return entry

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        named = handler.resolve_ref_schema(handler(core_schema))
        return {"anyOf": [{"enum": list(cls.model_fields)}, {**named, "minProperties": 1, "maxProperties": 1}]}

    @model_validator(mode="after")
    def _exactly_one(self) -> OneOf:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"write exactly one of {', '.join(type(self).model_fields)} per list entry")
        return self

    @property
    def name(self) -> str:
        """The one name that was written."""
        (name,) = self.model_fields_set
        return name

    @property
    def config(self) -> Any:
        """The options that were written under that name."""
        return getattr(self, self.name)

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {self.name: self.config.model_dump(mode="json")}


class StageStep(OneOf):
    """One entry of ``stages``: a verb and its configuration."""

    prune: PruneConfig | None = None
    distill: DistillConfig | None = None
    quantize: QuantizeConfig | None = None


class TargetStep(OneOf):
    """One entry of ``targets``: a runtime and its options."""

    onnx: OnnxConfig | None = None
    coreml: CoremlConfig | None = None
    tflite: TfliteConfig | None = None


def _listed(value: Any) -> Any:
    if isinstance(value, list) and not value:
        raise ValueError("is empty: list at least one budget, or remove it")
    return value if isinstance(value, list | tuple) else (value,)


def _task_of_name(entry: Any) -> Any:
    return {"name": entry} if isinstance(entry, str) else entry


class Recipe(Setting):
    """Everything one run needs; paths are relative to the recipe's file."""

    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=100, description="names the run and its folder")
    model: ModelSource = Field(description="where the trained FP32 model comes from")
    data: DataConfig = Field(description="the sets of samples")
    stages: tuple[StageStep, ...] = Field((), description="what is done to the model, in this order")
    targets: tuple[TargetStep, ...] = Field((), description="runtimes to write files for; each at most once")
    task: Annotated[
        TaskConfig | None, BeforeValidator(_task_of_name, json_schema_input_type=TaskConfig | str | None)
    ] = Field(None, description="classification where the model and its labels are such, else fidelity to the original")
    budget: Annotated[
        tuple[Budget, ...], BeforeValidator(_listed, json_schema_input_type=Budget | tuple[Budget, ...])
    ] = Field((Budget(),), description="one, or a list of them: every one has to be kept")
    seed: Integer = Field(0, ge=0, le=2**32 - 1, description="of everything random in the run")

    @field_serializer("budget")
    def _one_as_written(self, budgets: tuple[Budget, ...]) -> Any:
        found = [budget.model_dump(mode="json", exclude_none=True) for budget in budgets]
        return found[0] if len(found) == 1 else found

    @model_validator(mode="after")
    def _order_makes_sense(self) -> Recipe:
        verbs = [step.name for step in self.stages]
        if "quantize" in verbs[:-1]:
            raise ValueError(f"stages run in the order written, and nothing can follow quantize: {', '.join(verbs)}")
        zeroed = next((index for index, step in enumerate(self.stages) if step.prune and step.prune.sparsity), None)
        if zeroed is not None and "distill" in verbs[zeroed:]:
            raise ValueError("distill would fill the zeros of prune.sparsity: train in prune.recover, or distill first")
        targets = [step.name for step in self.targets]
        if len(set(targets)) != len(targets):
            raise ValueError(f"targets: each can be listed once: {', '.join(targets)}")
        for index, step in enumerate(self.stages):
            if step.prune and step.prune.latency_target not in (None, *targets):
                raise ValueError(
                    f"stages[{index}].prune.latency_target: {step.prune.latency_target!r} is not listed under targets"
                )
        return self


Place = tuple[int | str, ...]
"""Where a value is: the keys and positions that lead to it."""


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        RecipeError: The file is missing or not YAML, or a field is unknown, missing or out of range; the message
            names the file, the field and the nearest valid key.
    """
    return parse_recipe(read_values(path), where=str(path))


def read_values(path: Path) -> dict[str, Any]:
    """The mapping in a recipe's file, as it is written.

    Raises:
        RecipeError: The file is missing, or holds no mapping in YAML.
    """
    try:
        values = parse_yaml(read_small(path, MAX_BYTES).decode("utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), fix="give the path of a recipe.yaml") from None
    except OSError as error:
        problem = "is a folder" if path.is_dir() else f"cannot be read: {error.strerror}"
        raise RecipeError(problem, where=str(path), fix="give the path of a recipe.yaml") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"line {line}: is not UTF-8 text", where=str(path), fix="save it as UTF-8") from None
    except ValueError as error:
        fix = "correct it there: indent with spaces, close brackets and quotes, and use no tags"
        raise RecipeError(f"is not YAML: {error}", where=str(path), fix=fix) from None
    if not isinstance(values, dict):
        raise RecipeError("is empty or not a mapping", where=str(path), fix="see 'edgewright schema recipe'")
    logger.debug("read %s: keys %s", path, ", ".join(map(str, values)))
    return values


def parse_recipe(
    values: dict[str, Any], *, where: str = "recipe", options: Mapping[Place, str] = MappingProxyType({})
) -> Recipe:
    """Validate a recipe that is already a mapping; see `read_recipe`.

    Args:
        options: What has set the values at some places, such as an option of the command; problems there name it.

    >>> parse_recipe({"name": "x", "modle": {}})
    Traceback (most recent call last):
    ...
    pipeline.core.RecipeError: recipe: unknown key 'modle'; did you mean 'model'?
      fix: 'edgewright schema recipe' prints every key
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        one_budget = not isinstance(values.get("budget"), list)
        found = [(problem, _location(problem, one_budget)) for problem in error.errors()[:_SHOWN_PROBLEMS]]
        problems = [f"{where}: {_problem(problem, place)}{_set_by(place, options)}" for problem, place in found]
        text = "\n".join(problems).removeprefix(f"{where}: ")
        raise RecipeError(text, where=where, fix="'edgewright schema recipe' prints every key") from None


def _location(error: ErrorDetails, one_budget: bool) -> Place:
    """Where a problem is in the YAML file, in which one budget stands for a list of one."""
    location = error["loc"]
    return ("budget", *location[2:]) if one_budget and location[:2] == ("budget", 0) else location


def _set_by(place: Place, options: Mapping[Place, str]) -> str:
    """What has set the value at a place, a part of it, or what it is part of."""
    found = [option for where, option in options.items() if where[: len(place)] == place[: len(where)]]
    return f" (with {' '.join(found)})" if found else ""


_SHOWN_PROBLEMS = 10
_EXPECTED = {
    "missing": "is required",
    "model_type": "must be a mapping, such as {key: value}",
    "dict_type": "must be a mapping, such as {key: value}",
    "tuple_type": "must be a list, such as [a, b]",
    "bool_type": "must be true or false",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "string_type": "must be a string: write it in quotes",
    "path_type": "must be a path",
}
"""What pydantic's errors mean in YAML."""


def _problem(error: ErrorDetails, location: Place) -> str:
    """One error of pydantic's, in terms of the YAML file.

    A validator names a field inside its own as ``shape: …``.
    """
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == FACTORY:
        return f"{_field(location)}must be module:callable, such as my_models:resnet"
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and (inner := re.match(r"([a-z_.]+(\[\d+\])?[a-z_.]*): ", text)):
        return f"{_field((*location, inner[1]))}{text[inner.end() :]}"
    return f"{_field(location)}{_EXPECTED.get(error['type'], text)}"


def _field(location: Place) -> str:
    """``("stages", 0, "prune")`` as ``stages[0].prune: ``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return f"{text}: " if text else ""
