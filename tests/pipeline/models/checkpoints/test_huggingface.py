"""Folders of transformers: what they say, what the network gives, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipeline.core import CheckpointError, Preprocessing, TensorSpec
from pipeline.models.capture import capture
from pipeline.models.checkpoints import huggingface
from pipeline.models.checkpoints.processors import audio_inputs, image_input, preprocessing_of
from pipeline.models.load import load
from pipeline.recipe import ModelSource
from tests.networks import families

NAMED = {"distilbert": ("negative", "positive"), "segformer": ("sky", "road", "car"), "yolos": ("cat", "dog")}
SHAPES = {"resnet": (3, 32, 32), "detr": (3, 64, 64), "wav2vec2": (800,), "llama": (16,)}


@pytest.mark.parametrize("name", families.FAMILIES)
def test_network_gives_what_transformers_gives_for_inputs_that_the_folder_names(name: str, tmp_path: Path) -> None:
    family = families.save(name, tmp_path)
    described = huggingface.describe(tmp_path)
    assert described.task == family.made
    assert described.classes == NAMED.get(name, described.classes)
    assert described.inputs[0].shape == SHAPES.get(name, described.inputs[0].shape)

    model = load(ModelSource(huggingface=str(tmp_path)))
    values = tuple(
        torch.randint(1, 9, (2, *spec.shape)) if spec.dtype == "int64" else torch.randn(2, *spec.shape)
        for spec in model.inputs
    )
    expected = getattr(transformers, family.network).from_pretrained(tmp_path)(
        **{spec.name: value for spec, value in zip(model.inputs, values, strict=True)}
    )
    for output, value in zip(model.outputs, model.module(*values), strict=True):
        torch.testing.assert_close(value, expected[output], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["distilbert", "llama"])
def test_masks_of_texts_are_read_by_attention_and_leave_out_what_they_should(name: str, tmp_path: Path) -> None:
    families.save(name, tmp_path)
    model = load(ModelSource(huggingface=str(tmp_path)))
    known = (torch.arange(16) < 5).long()[None]
    ids = torch.randint(4, 9, (1, 16))
    others = torch.where(known.bool(), ids, 9)
    masks = (known,) if name == "distilbert" else ()
    one, other = (model.module(each, *masks)[0] for each in (ids, others))
    torch.testing.assert_close(*((one, other) if name == "distilbert" else (one[:, :5], other[:, :5])))
    graph = capture(model.module, model.inputs).graph  # without indices of samples, which no target needs
    assert not graph.find_nodes(op="call_function", target=torch.ops.aten.index.Tensor)


def test_networks_of_blue_green_and_red_take_red_green_and_blue(tmp_path: Path) -> None:
    config = transformers.MobileViTConfig(
        image_size=32, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32], num_labels=3
    )
    network = transformers.MobileViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    processor = {"do_flip_channel_order": True, "size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = network(image.flip(1)).logits
        torch.testing.assert_close(load(ModelSource(huggingface=str(tmp_path))).module(image)[0], expected)


def test_encoder_of_a_generating_network_is_read_and_its_whole_refused(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "num_mel_bins": 8, "max_source_positions": 20, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = transformers.WhisperConfig(**sizes, **heads, vocab_size=51866)
    network = transformers.WhisperForConditionalGeneration(config).eval()
    network.save_pretrained(tmp_path / "whole")
    network.get_encoder().save_pretrained(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="WhisperForConditionalGeneration is out of scope") as refusal:
        huggingface.describe(tmp_path / "whole")
    assert "model.get_encoder()" in str(refusal.value)
    model = load(ModelSource(huggingface=str(tmp_path / "encoder")))
    values = torch.randn(2, 8, 40)
    with torch.no_grad():
        torch.testing.assert_close(model.module(values)[0], network.get_encoder()(values).last_hidden_state)


def test_positions_that_begin_behind_the_padding_leave_fewer_tokens(tmp_path: Path) -> None:
    settings = {**families.TEXT, **families.ENCODER, "pad_token_id": 1}
    transformers.RobertaModel(transformers.RobertaConfig(**settings)).save_pretrained(tmp_path)
    assert huggingface.describe(tmp_path).inputs[0].shape == (14,)
    assert load(ModelSource(huggingface=str(tmp_path))).outputs == ("last_hidden_state", "pooler_output")


def test_spelling_networks_have_the_alphabet_of_their_vocabulary(tmp_path: Path) -> None:
    config = transformers.Wav2Vec2Config(**{**families.SOUND, "vocab_size": 6, "pad_token_id": 0})
    transformers.Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    symbols = ["<pad>", "<unk>", "|", "E", "T", "A"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(symbols)}))
    described = huggingface.describe(tmp_path)
    assert (described.task, described.alphabet[1:]) == ("ctc", " ETA")
    assert len(described.alphabet) == 5


def test_texts_become_ids_of_the_folders_tokenizer(tmp_path: Path) -> None:
    families.save("distilbert", tmp_path)
    described = huggingface.describe(tmp_path, (TensorSpec(name="input_ids", shape=(6,), dtype="int64"),))
    tokenize = huggingface.tokenizer_of(described)
    assert tokenize is not None
    (ids,) = tokenize([["good film"], ["a very very very very bad film"]])
    assert ids.tolist() == [[2, 4, 6, 3, 0, 0], [2, 8, 10, 10, 10, 3]]
    (pairs,) = tokenize([["good", "bad"]])
    assert pairs.tolist() == [[2, 4, 3, 5, 3, 0]]


OLD = {"size": 224, "do_resize": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CONVNEXT = {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "do_normalize": False, "rescale_factor": 0.5}
EFFICIENTNET = {
    "size": {"height": 64, "width": 64}, "rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": True,
    "image_mean": [0.5], "image_std": [0.2],
}  # fmt: skip


@pytest.mark.parametrize(
    ("processor", "size", "expected"),
    [
        pytest.param({}, 8, Preprocessing(), id="nothing is said"),
        pytest.param(
            OLD, 224, Preprocessing(resize=(224, 224), scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3), id="old form"
        ),
        pytest.param(
            OLD | {"do_resize": False, "do_rescale": False, "do_normalize": False}, 8, Preprocessing(), id="off"
        ),
        pytest.param(
            CONVNEXT,
            224,
            Preprocessing(resize=(256, 256), cover=True, crop=(224, 224), scale=0.5),
            id="share of a crop",
        ),
        pytest.param(
            CONVNEXT | {"size": {"shortest_edge": 384}}, 384, Preprocessing(resize=(384, 384), scale=0.5), id="no crop"
        ),
        pytest.param(
            EFFICIENTNET, 64, Preprocessing(resize=(64, 64), scale=1 / 127.5, mean=(1.5,), std=(0.2**2,)), id="offset"
        ),
    ],
)
def test_preprocessing_is_that_of_the_folder(processor: dict[str, Any], size: int, expected: Preprocessing) -> None:
    assert preprocessing_of(processor, TensorSpec(name="x", shape=(3, size, size))) == expected


def test_inputs_have_the_sizes_that_the_files_say() -> None:
    def config(**values: Any) -> Any:
        return type("Config", (), values)

    edges = {"size": {"shortest_edge": 800, "longest_edge": 1333}}
    assert image_input(config(image_size=[512, 864]), edges)[0].shape == (3, 512, 864)
    assert image_input(config(), edges)[0].shape == (3, 800, 800)
    assert image_input(config(num_channels=1, image_size=28), {})[0].shape == (1, 28, 28)
    assert image_input(config(), {}) == ()
    assert audio_inputs("input_values", config(num_mel_bins=128, max_length=1024), {})[0].shape == (1024, 128)
    assert audio_inputs("input_features", config(num_mel_bins=80, max_source_positions=1500), {})[0].shape == (80, 3000)
    assert audio_inputs("input_values", config(), {})[0].shape == (16_000,)
    assert audio_inputs("series", config(), {}) == ()


def _changed(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _incomplete(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _damaged(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:50])


def _with_code(folder: Path) -> None:
    _changed(model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"})(folder)
    (folder / "mine.py").write_text("raise SystemExit('code of the folder was run')")


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no configuration": (_without("config.json"), "has no config.json"),
    "a damaged configuration": (_damaged("config.json"), "no configuration of a network that transformers knows"),
    "an unknown network": (_changed(model_type="mine"), "no configuration of a network that transformers knows"),
    "code": (_with_code, "no configuration of a network that transformers knows"),
    "no weights": (_without("model.safetensors"), "holds no weights"),
    "pickled weights": (_pickled, "holds its weights in pytorch_model.bin, which may run code"),
    "damaged weights": (_damaged("model.safetensors"), "cannot be loaded by transformers"),
    "a missing weight": (_incomplete, r"another network: missing classifier\.weight"),
    "weights of other sizes": (_changed(hidden_dim=48), "cannot be loaded by transformers|mismatched"),
    "a decoder": (_changed(model_type="t5", architectures=["T5ForConditionalGeneration"]), "is out of scope"),
    "no such network": (_changed(architectures=["DistilBertForPoetry"]), "DistilBertForPoetry is out of scope"),
    "a damaged tokenizer": (_damaged("tokenizer.json"), "its tokenizer cannot be loaded"),
}


def _opened(folder: Path) -> None:
    load(ModelSource(huggingface=str(folder)))
    huggingface.tokenizer_of(huggingface.describe(folder))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distilbert")
    families.save("distilbert", folder)
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_folder_is_refused_with_the_reason(name: str, saved: Path, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    change(folder)
    with pytest.raises(CheckpointError, match=message) as refusal:
        _opened(folder)
    assert "fix:" in str(refusal.value)


def test_model_on_the_hub_that_cannot_be_reached_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(CheckpointError, match="no such folder, and the hub gives no such model: no route"):
        huggingface.folder_of("owner/name", tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path / name))
    assert huggingface.folder_of("owner/name", tmp_path) == tmp_path / "owner/name"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(CheckpointError, match="needs the package transformers") as refusal:
        huggingface.transformers()
    assert 'pip install "edgewright[huggingface]"' in str(refusal.value)


def test_arrays_of_ids_need_no_tokenizer(tmp_path: Path) -> None:
    families.save("distilbert", tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    described = huggingface.describe(tmp_path)
    assert huggingface.tokenizer_of(described) is None
    assert described.inputs[0].shape == (16,)
    ids = np.full((2, 16), 4)
    assert load(ModelSource(huggingface=str(tmp_path))).module(*map(torch.from_numpy, (ids, ids)))[0].shape == (2, 2)
