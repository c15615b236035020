"""A WD tagger and a BLIP captioner with small random weights, in the same files as real ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from lora_studio.dataset.tagging.interface import Description, Tagger
from lora_studio.dataset.tagging.selection import TagSelection, describe

WD_SIZE = 32  # px
WD_TAGS = (
    ("general", 9),
    ("sensitive", 9),
    ("1girl", 0),
    ("long_hair", 0),
    ("^_^", 0),
    ("hat_(object)", 0),
    ("red", 0),
    ("green", 0),
    ("blue", 0),
    ("hero_(series)", 4),
)
RED, GREEN, BLUE = 6, 7, 8  # rows of WD_TAGS
WORDS = ["a", "picture", "of", "the", "red", "green", "blue", "cat", "house", "with", "and"]


# The model families of the WD v3 series in timm, in their smallest sizes.
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": WD_SIZE, "embed_dim": 24, "depth": 1, "num_heads": 2, "class_token": False, "global_pool": "avg"},
    ),
    "swinv2": (
        "swinv2_tiny_window8_256",
        {"img_size": WD_SIZE, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]},
    ),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}),
    "eva02": (
        "eva02_tiny_patch14_224",
        {"img_size": 28, "embed_dim": 24, "depth": 1, "num_heads": 2, "class_token": False, "global_pool": "avg"},
    ),
}


def save_tiny_wd(folder: Path, tags: Sequence[tuple[str, int]] = WD_TAGS, family: str = "vit") -> Path:
    """Save a small model of a family in the format that timm writes for the Hub, with selected_tags.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    architecture, arguments = FAMILIES[family]
    image_size = arguments.get("img_size", WD_SIZE)
    model = timm.create_model(architecture, num_classes=len(tags), **arguments)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architecture": architecture,
        "num_classes": len(tags),
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, image_size, image_size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": len(tags),
            "pool_size": None,
        },
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with (folder / "selected_tags.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["tag_id", "name", "category", "count"])
        table.writerows([1000 + index, name, category, 500] for index, (name, category) in enumerate(tags))
    return folder


def save_tiny_blip(folder: Path) -> Path:
    """Save a BlipForConditionalGeneration with its processor and a WordPiece vocabulary, as transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n", "utf-8")
    tokens = BertTokenizer(str(vocabulary), do_lower_case=True, model_max_length=32)
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        vision_config=vision | {"image_size": 32, "patch_size": 16},
        text_config=text
        | {
            "vocab_size": len(tokens),
            "encoder_hidden_size": 16,
            "max_position_embeddings": 32,
            "bos_token_id": tokens.cls_token_id,
            "eos_token_id": tokens.sep_token_id,
            "sep_token_id": tokens.sep_token_id,
            "pad_token_id": tokens.pad_token_id,
        },
        image_text_hidden_size=16,
    )
    model = BlipForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(images, tokens).save_pretrained(folder)
    return folder


def coloured_images() -> list[Image.Image]:
    """Return a wide, a tall and a square image of different colours."""
    images = []
    for size, colour in (((90, 40), "red"), ((30, 70), "blue"), ((50, 50), "green")):
        image = Image.new("RGB", size, colour)
        ImageDraw.Draw(image).ellipse((5, 5, 25, 35), fill="yellow")
        images.append(image)
    return images


def descriptions(
    tagger: Tagger, images: Sequence[Image.Image], selection: TagSelection | None = None
) -> list[Description]:
    """Return the descriptions of images."""
    predictions = tagger.predict([tagger.preprocess(image) for image in images])
    return [describe(prediction, tagger.labels, selection or TagSelection()) for prediction in predictions]
