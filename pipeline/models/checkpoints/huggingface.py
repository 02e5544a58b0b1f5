"""A folder that ``save_pretrained`` of Hugging Face's transformers wrote: a network, its weights, and what it is for.

No code of the folder is run: the network is one of transformers' own classes, and the weights are safetensors.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core import CheckpointError, Preprocessing, TensorSpec, first_line
from pipeline.core.arrays import Array
from pipeline.models.checkpoints.processors import audio_inputs, image_input, preprocessing_of

logger = logging.getLogger(__name__)

Tokenize = Callable[[Sequence[Sequence[str]]], tuple[Array, ...]]
"""Model inputs ``(N, …)`` of texts: for each sample one text, or a pair."""

HEADS = {
    "IMAGE_CLASSIFICATION": "classification",
    "AUDIO_CLASSIFICATION": "classification",
    "SEQUENCE_CLASSIFICATION": "classification",
    "TOKEN_CLASSIFICATION": "tokens",
    "OBJECT_DETECTION": "detection",
    "SEMANTIC_SEGMENTATION": "segmentation",
    "DEPTH_ESTIMATION": "depth",
    "CTC": "ctc",
    "QUESTION_ANSWERING": None,
    "MASKED_LM": None,
    "CAUSAL_LM": None,
    "TEXT_ENCODING": None,
    "AUDIO_FRAME_CLASSIFICATION": None,
    "AUDIO_XVECTOR": None,
    "IMAGE_TO_IMAGE": None,
}
"""What transformers calls its kinds of models, and the task of each; fidelity where that is None."""

PROBLEMS = {"regression": "regression", "multi_label_classification": "multilabel"}
"""What ``problem_type`` of a classifier says, and the task that it then has."""

RESULTS = (
    "logits", "pred_boxes", "start_logits", "end_logits", "predicted_depth", "embeddings", "reconstruction",
)  # fmt: skip
FEATURES = ("last_hidden_state", "pooler_output")
"""Names of what a network gives to its user: of the first list where there are any, else of the second. Everything
else that transformers returns is on the way there."""

LENGTH = 128
"""Tokens of a text where the recipe does not say how many."""

_INSTALL = 'pip install "edgewright[huggingface]"'


@dataclass(frozen=True, slots=True)
class Described:
    """What a folder says about its model.

    Attributes:
        classes: Names of the classes; empty where the folder only numbers them.
        task: The built-in task; None for fidelity.
        preprocessing: How stored images become inputs.
        alphabet: The characters of symbols 1, 2, … of a model that spells.
        notes: What a user should know about it.
    """

    folder: Path
    inputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...] = ()
    task: str | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    alphabet: str = ""
    notes: tuple[str, ...] = ()


def folder_of(name: str, root: Path = Path()) -> Path:
    """The folder that a recipe names: one on the disk, or of a model on the hub, which is downloaded once.

    Raises:
        CheckpointError: There is no such folder, and no such model on the hub, or the hub cannot be reached.
    """
    path = root / name
    if path.is_dir():
        return path
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        problem = "is a file" if path.exists() else "no such folder"
        raise CheckpointError(
            problem, where=str(path), fix="name a folder that save_pretrained wrote, or a hub's model"
        )
    transformers()
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"])
        )
    except Exception as error:  # of the network, of the hub, or of the name
        problem = f"no such folder, and the hub gives no such model: {first_line(error)}"
        raise CheckpointError(problem, where=str(path), fix="save the model here with save_pretrained") from None


def describe(folder: Path, inputs: tuple[TensorSpec, ...] = ()) -> Described:
    """What a folder says about its model, without its weights.

    Args:
        inputs: The recipe's, which replace what the folder says.

    Raises:
        CheckpointError: The folder has no configuration of a network that transformers knows, or of one that answers in
            one call; or it does not say how large an input is.
    """
    config = _configuration(folder)
    network, kind = _network(config, folder)
    processor = _json(folder / "preprocessor_config.json") or _json(folder / "processor_config.json")
    processor = processor.get("image_processor") or processor.get("feature_extractor") or processor
    inputs = inputs or _inputs(network, kind, config, processor, folder)
    task = PROBLEMS.get(getattr(config, "problem_type", None) or "", HEADS.get(kind))
    alphabet = _alphabet(folder, config) if task == "ctc" else ""
    return Described(
        folder=folder,
        inputs=inputs,
        classes=_classes(config, kind),
        task=None if task == "ctc" and not alphabet else task,
        preprocessing=preprocessing_of(processor, inputs[0]),
        alphabet=alphabet,
        notes=_notes(kind, inputs, processor),
    )


def load(described: Described) -> nn.Module:
    """The network in eval mode, which returns its results only.

    Raises:
        CheckpointError: The weights are missing, damaged, in a format that may run code, or another network's.
    """
    folder = described.folder
    config = _configuration(folder)
    network, kind = _network(config, folder)
    for name in ("use_cache", "output_attentions", "output_hidden_states"):
        if getattr(config, name, False):
            setattr(config, name, False)
    if not any(folder.glob("*.safetensors")):
        held = next((path.name for pattern in ("*.bin", "*.h5", "*.msgpack") for path in folder.glob(pattern)), None)
        problem = f"holds its weights in {held}, which may run code" if held else "holds no weights"
        fix = "save them again: model.save_pretrained(folder), which writes safetensors"
        raise CheckpointError(problem, where=str(folder), fix=fix)
    with _quiet():
        try:
            module, report = network.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True,
                trust_remote_code=False, local_files_only=True,
            )  # fmt: skip
        except Exception as error:  # of transformers, safetensors or the files
            problem = f"cannot be loaded by transformers: {first_line(error)}"
            raise CheckpointError(problem, where=str(folder), fix="save it again with save_pretrained") from error
    _require_all_weights(report, folder)
    if _json(folder / "preprocessor_config.json").get("do_flip_channel_order"):
        _take_rgb(module, described.inputs, folder)
    _simplify(module.eval(), described.inputs, causal=kind == "CAUSAL_LM")
    logger.debug("loaded %s from %s", network.__name__, folder)
    evaluated: nn.Module = module.eval()
    return evaluated


def tokenizer_of(described: Described) -> Tokenize | None:
    """What turns texts into the model's inputs; None for a model that takes no texts, or a folder without a tokenizer.

    Raises:
        CheckpointError: The folder's tokenizer cannot be loaded, or does not give one of the inputs.
    """
    names, folder = [spec.name for spec in described.inputs], described.folder
    if "input_ids" not in names or not (folder / "tokenizer_config.json").is_file():
        return None
    length = described.inputs[names.index("input_ids")].shape[0] or LENGTH  # 0 where the recipe leaves it open
    with _quiet():
        try:
            tokenizer = transformers().AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # of transformers, tokenizers or the files
            problem = f"its tokenizer cannot be loaded: {first_line(error)}"
            raise CheckpointError(problem, where=str(folder), fix="save it again with save_pretrained") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "right"

    def tokenize(samples: Sequence[Sequence[str]]) -> tuple[Array, ...]:
        columns = [list(column) for column in zip(*samples, strict=True)]
        found = tokenizer(
            *columns,
            padding="max_length",
            truncation=True,
            max_length=length,
            return_token_type_ids=True,
            verbose=False,
        )
        return tuple(np.asarray(found[name], np.int64) for name in names)

    given = set(tokenizer("", return_token_type_ids=True))
    if missing := [name for name in names if name not in given]:
        problem = f"its tokenizer gives no {missing[0]!r}"
        raise CheckpointError(problem, where=str(folder), fix="give the inputs as arrays, in an npz or in columns")
    return tokenize


def transformers() -> Any:
    """The package.

    Raises:
        CheckpointError: It is missing.
    """
    try:
        import transformers as package
    except ImportError as error:
        raise CheckpointError(
            f"reading it needs the package {error.name}", where="model.huggingface", fix=_INSTALL
        ) from None
    return package


def _configuration(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        problem = "has no config.json"
        raise CheckpointError(problem, where=str(folder), fix="name a folder that save_pretrained wrote")
    with _quiet():
        try:
            return transformers().AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except CheckpointError:
            raise
        except Exception as error:  # of transformers, or of the file
            raise CheckpointError(
                f"is no configuration of a network that transformers knows: {first_line(error)}",
                where=str(folder / "config.json"),
                fix="install the version of transformers that wrote it; code in the folder is never run",
            ) from error


def _network(config: Any, folder: Path) -> tuple[Any, str]:
    """The class of the network, and its kind: a key of `HEADS`, or nothing for one that gives features."""
    package = transformers()
    (architecture, *_) = getattr(config, "architectures", None) or ("",)
    for kind in HEADS:
        found = getattr(package, f"MODEL_FOR_{kind}_MAPPING").get(type(config), ())
        for network in found if isinstance(found, tuple | list) else (found,):
            if network.__name__ == architecture:
                return network, kind
    base = package.MODEL_MAPPING.get(type(config), ())
    whole = [network.__name__ for network in (base if isinstance(base, tuple | list) else (base,))]
    network = _own_class(config, architecture or (whole[0] if whole else ""))
    if network is not None and not network.can_generate() and not (config.is_encoder_decoder and architecture in whole):
        return network, ""
    kinds = ", ".join(kind.lower().replace("_", " ") for kind in HEADS)
    raise CheckpointError(
        f"{architecture or type(config).__name__} is out of scope: it generates with a decoder, or consists of several "
        f"networks, and does not answer in one call; supported are encoders and {kinds}",
        where=str(folder / "config.json"),
        fix="save one part of it, such as model.get_encoder(), or export one step with torch.export",
    )


def _own_class(config: Any, name: str) -> Any:
    """The class of this name that transformers has for a configuration; None where it has none."""
    module = import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    found = getattr(module, name, None)
    return found if isinstance(found, type) and issubclass(found, transformers().PreTrainedModel) else None


def _inputs(network: Any, kind: str, config: Any, processor: dict[str, Any], folder: Path) -> tuple[TensorSpec, ...]:
    main = network.main_input_name
    if main == "pixel_values":
        found = image_input(config, processor)
    elif main == "input_ids":
        found = _text_inputs(network, kind, config, folder)
    else:
        found = audio_inputs(main, config, processor)
    if not found:
        raise CheckpointError(
            f"does not say how large the input {main!r} is",
            where=str(folder),
            fix=f"add it to the recipe: model.inputs: [{{name: {main}, shape: [...]}}], without the batch",
        )
    return found


def _text_inputs(network: Any, kind: str, config: Any, folder: Path) -> tuple[TensorSpec, ...]:
    """Token ids, and the mask that leaves padding out; with a causal mask, padding on the right changes nothing."""
    padding = getattr(config, "pad_token_id", None) or 0  # RoBERTa's positions begin behind the number of its padding
    longest = [LENGTH, getattr(config, "max_position_embeddings", 2 * LENGTH) - (padding + 1 if padding else 0)]
    stated = _json(folder / "tokenizer_config.json").get("model_max_length", LENGTH)
    length = int(min(*longest, stated))
    masked = kind != "CAUSAL_LM" and "attention_mask" in inspect.signature(network.forward).parameters
    most = {"input_ids": config.vocab_size - 1} | ({"attention_mask": 1} if masked else {})
    return tuple(TensorSpec(name=name, shape=(length,), dtype="int64", range=(0, most[name])) for name in most)


def _classes(config: Any, kind: str) -> tuple[str, ...]:
    """Names of the classes, where they are more than numbers; a detector's number of them matters, too."""
    if not kind.endswith("CLASSIFICATION") and kind not in ("OBJECT_DETECTION", "SEMANTIC_SEGMENTATION"):
        return ()
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    if sorted(names) != list(range(len(names))) or len(names) < 2:
        return ()
    ordered = tuple(names[number] for number in range(len(names)))
    numbered = all(name == f"LABEL_{number}" for number, name in names.items())
    return () if numbered and kind != "OBJECT_DETECTION" else ordered


def _alphabet(folder: Path, config: Any) -> str:
    """The characters of symbols 1, 2, …; empty where the blank is not symbol 0. Special symbols are shown as a box."""
    symbols = {number: name for name, number in _json(folder / "vocab.json").items() if isinstance(number, int)}
    count = getattr(config, "vocab_size", 0)
    if getattr(config, "pad_token_id", None) != 0 or not symbols or max(symbols) >= count:
        return ""
    names = (symbols.get(number, "") for number in range(1, count))
    special = (chr(0xE000 + number) for number in range(count))  # of the private use area, each another one
    return "".join(" " if name == "|" else name if len(name) == 1 else next(special) for name in names)


def _notes(kind: str, inputs: tuple[TensorSpec, ...], processor: dict[str, Any]) -> tuple[str, ...]:
    notes = []
    sizes = ", ".join(f"{spec.name} {['N', *spec.shape]}" for spec in inputs)
    notes.append(f"takes {sizes}; model.inputs sets other sizes")
    if inputs[0].name == "input_values" and processor.get("do_normalize"):
        notes.append(
            "takes sound with mean 0 and standard deviation 1, as its feature extractor gives it (do_normalize)"
        )
    if processor.get("do_reduce_labels") and kind == "SEMANTIC_SEGMENTATION":
        notes.append(
            "was trained on masks whose class 0 counts for nothing (do_reduce_labels): store class 1 as 0, 0 as 255"
        )
    return tuple(notes)


def _require_all_weights(report: Any, folder: Path) -> None:
    """Refuse weights of another network, which transformers would fill up with random ones."""
    found = {name: sorted(map(str, report.get(f"{name}_keys", ()))) for name in ("missing", "mismatched")}
    for problem, names in found.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"its weights are of another network: {problem} {names[0]}{more}",
                where=str(folder),
                fix="save the whole model with save_pretrained, with its own config.json",
            )


def _take_rgb(module: nn.Module, inputs: tuple[TensorSpec, ...], folder: Path) -> None:
    """Let a network that was trained on blue, green and red take red, green and blue, as every source stores images."""
    image = torch.rand(1, *inputs[0].shape)
    first: list[nn.Conv2d] = []

    def watch(part: nn.Module, given: tuple[Any, ...], _: Any) -> None:
        if isinstance(given[0], Tensor) and given[0].shape == image.shape and torch.equal(given[0], image):
            assert isinstance(part, nn.Conv2d)
            first.append(part)

    hooks = [part.register_forward_hook(watch) for part in module.modules() if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        module.eval()(image)
        for hook in hooks:
            hook.remove()
        if len(first) != 1 or first[0].groups != 1:
            problem = "takes images as blue, green and red (do_flip_channel_order), and no convolution reads them first"
            raise CheckpointError(
                problem, where=str(folder), fix="export it with torch.export, with x.flip(1) in front"
            )
        first[0].weight.copy_(first[0].weight.flip(1))


def _simplify(module: nn.Module, inputs: tuple[TensorSpec, ...], *, causal: bool) -> None:
    """Let forward take the inputs by position and return its results, as an instance of a subclass of its own class.

    A network of texts is given its mask in the form in which attention reads it, where that changes nothing: what
    transformers makes it from looks at indices of samples, which no target needs.
    """
    original, names = type(module), [spec.name for spec in inputs]
    module.__class__ = _with_forward(original, names, mask=False, causal=causal)
    if names[0] != "input_ids" or not (causal or "attention_mask" in names):
        return
    simple = _with_forward(original, names, mask=True, causal=causal)
    length = inputs[0].shape[0] or 8  # any, where the recipe leaves it open
    ids, known = torch.arange(2 * length).reshape(2, -1) % 7, torch.arange(length).expand(2, -1) <= length // 2
    values = tuple(ids if name == "input_ids" else known.long() for name in names)
    with torch.no_grad():
        try:
            pairs = zip(module(*values).values(), simple.forward(module, *values).values(), strict=True)
            alike = all(torch.allclose(one, other, 1e-4, 1e-5) for one, other in pairs)
        except Exception:  # it takes no such mask, or no such ids: a run on real samples tells what is wrong
            alike = False
    if alike:
        module.__class__ = simple
    logger.debug("%s %s attention's own mask", original.__name__, "takes" if alike else "does not take")


def _with_forward(original: Any, names: list[str], *, mask: bool, causal: bool) -> Any:
    """A subclass with another forward.

    Args:
        mask: Whether attention's mask ``(N or 1, 1, 1 or tokens, tokens) bool`` takes the place of the tokens' mask.
        causal: Whether a token sees only those before it.
    """

    def forward(self: nn.Module, *values: Tensor) -> dict[str, Any]:
        given = dict(zip(names, values, strict=True))
        if mask:
            given["attention_mask"] = _attention_mask(given, causal)
        return results(original.forward(self, **given, return_dict=True))

    return type(original.__name__, (original,), {"forward": forward, "__module__": original.__module__})


def _attention_mask(given: dict[str, Tensor], causal: bool) -> Tensor:
    tokens = given["attention_mask"].bool()[:, None, None] if "attention_mask" in given else None
    if not causal:
        assert tokens is not None
        return tokens
    length = given["input_ids"].shape[1]
    before = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    return before if tokens is None else before & tokens


def results(returned: Any) -> dict[str, Any]:
    """What a network gives to its user, of all that transformers returns."""
    present = {name: value for name, value in returned.items() if value is not None}
    for wanted in (RESULTS, FEATURES):
        if kept := {name: present[name] for name in wanted if name in present}:
            return kept
    return present


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"is not JSON: {first_line(error)}", where=str(path), fix="save it again") from None
    return content if isinstance(content, dict) else {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, transformers prints no progress and no advice."""
    log = transformers().utils.logging
    level = log.get_verbosity()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        log.enable_progress_bar()
