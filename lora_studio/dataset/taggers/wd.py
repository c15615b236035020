"""WD taggers (v3 series): timm models that know thousands of Danbooru tags.

The folder holds config.json and model.safetensors as timm writes them, and selected_tags.csv with one row an output:
tag_id, name, category, count.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config

from lora_studio.dataset.taggers.catalogue import TAGS_FILE, WEIGHTS
from lora_studio.dataset.taggers.interface import Description, Tag
from lora_studio.device import torch_device
from lora_studio.errors import InputError

GENERAL, CHARACTER = 0, 4  # categories of selected_tags.csv; 9 are ratings, which say nothing that trains
CHARACTER_THRESHOLD = 0.75  # a wrong name does more harm than a missing one
# Faces made of punctuation keep their underscores: they are not words.
_FACES = "0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||"
KAOMOJI = frozenset(_FACES.split())


@dataclass(frozen=True)
class WdTagger:
    """A loaded WD tagger. `labels` has one (name, category) an output of the model."""

    name: str
    model: torch.nn.Module
    transform: Callable[[Image.Image], torch.Tensor]
    labels: list[tuple[str, int]]
    threshold: float
    device: torch.device

    @classmethod
    def load(cls, folder: Path, *, name: str, threshold: float) -> Self:
        """Load from a folder onto the best device; raises InputError for a folder whose files do not fit together."""
        labels = read_labels(folder / TAGS_FILE)
        try:
            model = timm.create_model(f"local-dir:{folder}", pretrained=False)
            model.load_state_dict(load_file(folder / WEIGHTS))
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise InputError(
                f"The tagger in {folder} cannot be loaded: {str(error).splitlines()[0] if str(error) else error!r}",
                "Download it anew; config.json and model.safetensors must belong together.",
                code="tagger_broken",
            ) from error
        if model.num_classes != len(labels):
            raise InputError(
                f"The tagger in {folder} has {model.num_classes} outputs and {len(labels)} tags in {TAGS_FILE}.",
                f"Download {TAGS_FILE} of the same version.",
                code="tagger_broken",
            )
        device = torch_device()
        transform = create_transform(**resolve_data_config(pretrained_cfg=model.pretrained_cfg, model=model))
        return cls(name, model.eval().to(device), transform, labels, threshold, device)

    def describe(self, images: Sequence[Image.Image]) -> list[Description]:
        """The tags of each image that reach the threshold, the surest first."""
        return [Description(tags=self._chosen(row)) for row in self.probabilities(images).tolist()]

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Probability of every tag, float32 [N, tags], for images of any shape."""
        batch = torch.stack([self.transform(pad_square(image)) for image in images])  # [N, 3, H, W], RGB
        logits: Any = self.model(batch.flip(1).to(self.device))  # the series was trained on blue, green, red
        return torch.sigmoid(logits).float().cpu()

    def _chosen(self, probabilities: Sequence[float]) -> tuple[Tag, ...]:
        least = {GENERAL: self.threshold, CHARACTER: max(self.threshold, CHARACTER_THRESHOLD)}
        tags = [
            Tag(name, confidence)
            for (name, category), confidence in zip(self.labels, probabilities, strict=True)
            if category in least and confidence >= least[category]
        ]
        return tuple(sorted(tags, key=lambda tag: -tag.confidence))


def pad_square(image: Image.Image) -> Image.Image:
    """The image in the middle of a white square as wide as its longer side."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def read_labels(file: Path) -> list[tuple[str, int]]:
    """(name as it stands in a caption, category) of every row; raises InputError if the table cannot be read."""
    try:
        with file.open(encoding="utf-8", newline="") as table:
            return [(readable(row["name"]), int(row["category"])) for row in csv.DictReader(table)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f"{file} cannot be read: {error!r}.",
            "It needs columns name and category; download it anew.",
            code="tagger_broken",
        ) from error


def readable(name: str) -> str:
    """A tag with spaces for underscores, as SDXL bases read it; kaomoji stay as they are."""
    return name if name in KAOMOJI else name.replace("_", " ")
