"""Folders of Hugging Face's transformers with small networks of seeded weights, as ``save_pretrained`` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerFast

from pipeline.core.arrays import Array

ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SOUND = {**ENCODER, "conv_dim": (16, 16, 16), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4)} | {
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0, "feat_extract_norm": "layer",
}  # fmt: skip
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "plot", "a", "the", "very", "not", "is", "was"]
IMAGE = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}


@dataclass(frozen=True)
class Family:
    """A network, and what stands beside its weights.

    Attributes:
        network: The class, by its name.
        settings: Of its configuration.
        processor: ``preprocessor_config.json``.
        texts: Whether a tokenizer is saved, too.
        made: The task that follows from the folder.
    """

    network: str
    settings: dict[str, Any]
    processor: dict[str, Any] = field(default_factory=dict)
    texts: bool = False
    made: str | None = None

    @property
    def configuration(self) -> str:
        return self.network.split("For")[0].removesuffix("Model") + "Config"


def named(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def _resnet(**settings: Any) -> Any:
    return transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], **settings)


TEXT = {"vocab_size": len(WORDS), "max_position_embeddings": 16}
FAMILIES: dict[str, Callable[[], Family]] = {
    "distilbert": lambda: Family(
        "DistilBertForSequenceClassification",
        {**TEXT, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, **named("negative", "positive")},
        texts=True,
        made="classification",
    ),
    "bert": lambda: Family(
        "BertForTokenClassification", {**TEXT, **ENCODER, "num_labels": 3}, texts=True, made="tokens"
    ),
    "minilm": lambda: Family("BertModel", {**TEXT, **ENCODER}, texts=True),
    "resnet": lambda: Family(
        "ResNetForImageClassification",
        {**_resnet().to_diff_dict(), **named("cat", "dog", "bird")},
        {**IMAGE, "size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 32},
        made="classification",
    ),
    "vit": lambda: Family(
        "ViTForImageClassification", {**ENCODER, "image_size": 32, "patch_size": 8, **named("a", "b", "c")}, IMAGE,
        made="classification",
    ),
    "segformer": lambda: Family(
        "SegformerForSemanticSegmentation", {**STAGES, "decoder_hidden_size": 32, **named("sky", "road", "car")}, IMAGE,
        made="segmentation",
    ),
    "yolos": lambda: Family(
        "YolosForObjectDetection",
        {**ENCODER, "image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 6, **named("cat", "dog")},
        {**IMAGE, "size": {"shortest_edge": 800, "longest_edge": 1333}},
        made="detection",
    ),
    "detr": lambda: Family(
        "DetrForObjectDetection",
        {
            "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "d_model": 32,
            "backbone_config": _resnet(out_features=["stage4"]), "encoder_layers": 1, "decoder_layers": 1,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
            "num_queries": 6, **named("cat", "dog"),
        },
        {**IMAGE, "size": {"shortest_edge": 64, "longest_edge": 128}},
        made="detection",
    ),
    "wav2vec2": lambda: Family(
        "Wav2Vec2ForSequenceClassification", {**SOUND, **named("yes", "no", "up"), "classifier_proj_size": 16},
        {"sampling_rate": 800, "do_normalize": True, "feature_size": 1},
        made="classification",
    ),
    "llama": lambda: Family(
        "LlamaForCausalLM",
        {**TEXT, **ENCODER, "num_key_value_heads": 1, "bos_token_id": 2, "eos_token_id": 3},
        texts=True,
    ),
}  # fmt: skip


def save(name: str, folder: Path, **changes: Any) -> Family:
    """Write a family's folder.

    Args:
        changes: Of the configuration.
    """
    family = FAMILIES[name]()
    torch.manual_seed(0)
    config = getattr(transformers, family.configuration)(**{**family.settings, **changes})
    network = getattr(transformers, family.network)(config)
    _sharpen(network)
    network.save_pretrained(folder)
    if family.processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(family.processor))
    if family.texts:
        tokenizer().save_pretrained(folder)
    return family


def _sharpen(network: nn.Module) -> None:
    """Weights of the usual size: transformers starts so small that all outputs are almost alike."""
    for part in network.modules():
        if isinstance(part, nn.Linear) or (
            isinstance(part, nn.Conv1d | nn.Conv2d) and not hasattr(part, "parametrizations")
        ):
            nn.init.kaiming_uniform_(part.weight, a=5**0.5)


def tokenizer() -> PreTrainedTokenizerFast:
    """Words between spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=16, **special)


def texts(count: int) -> list[str]:
    """Sentences of three to nine words."""
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS[4:], generator.integers(3, 10))) for _ in range(count)]


def images(count: int, height: int = 32, width: int = 32) -> Array:
    """Stored images ``(N, H, W, 3) uint8``."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
