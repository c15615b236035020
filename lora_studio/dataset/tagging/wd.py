"""WD taggers (v3 series): timm models that predict thousands of Danbooru tags.

The folder contains config.json and model.safetensors as timm writes them, and selected_tags.csv with one row per
output: tag_id, name, category, count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

from lora_studio.dataset.tagging.interface import MIN_CONFIDENCE, Prediction
from lora_studio.dataset.tagging.labels import TAGS_FILE, WEIGHTS_FILE, Label, read_labels
from lora_studio.device import torch_device
from lora_studio.errors import InputError


@dataclass(frozen=True)
class WdTagger:
    """A loaded WD tagger."""

    name: str
    model: torch.nn.Module
    transform: Callable[[Image.Image], torch.Tensor]
    labels: tuple[Label, ...]
    image_size: int
    device: torch.device

    @classmethod
    def load(cls, folder: Path, *, name: str, on_cpu: bool = False) -> Self:
        """Load from a folder onto the best device, or the CPU; raises InputError if its files do not match."""
        labels = read_labels(folder / TAGS_FILE)
        try:
            model = timm.create_model(f"local-dir:{folder}", pretrained=False)
            model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise InputError(
                f"The tagger in {folder} cannot be loaded: {str(error).splitlines()[0] if str(error) else error!r}",
                "Download it again; config.json and model.safetensors must belong together.",
                code="tagger_broken",
            ) from error
        if model.num_classes != len(labels):
            raise InputError(
                f"The tagger in {folder} has {model.num_classes} outputs and {len(labels)} tags in {TAGS_FILE}.",
                f"Download {TAGS_FILE} of the same version.",
                code="tagger_broken",
            )
        device = torch.device("cpu") if on_cpu else torch_device()
        data = resolve_data_config(pretrained_cfg=model.pretrained_cfg, model=model)
        return cls(name, model.eval().to(device), create_transform(**data), labels, data["input_size"][-1], device)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Pad, resize and normalise an image to [3, image_size, image_size] in BGR order, as the series was trained."""
        return self.transform(pad_square(image)).flip(0)

    def predict(self, inputs: Sequence[torch.Tensor]) -> list[Prediction]:
        """Return the tags with their probabilities, and pooled features, from one forward pass."""
        features, probabilities = self.forward(inputs)
        predictions = []
        for row, feature in zip(probabilities.numpy(), features.numpy(), strict=True):
            outputs = np.flatnonzero(row >= MIN_CONFIDENCE)
            predictions.append(
                Prediction(
                    outputs.astype(np.uint16), row[outputs].astype(np.float16), features=feature.astype(np.float16)
                )
            )
        return predictions

    @torch.inference_mode()
    def forward(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pooled features [N, F] and the probabilities of all tags [N, tags], float32, from one forward pass."""
        model: Any = self.model
        features = model.forward_head(
            model.forward_features(torch.stack(list(inputs)).to(self.device)), pre_logits=True
        )
        probabilities = torch.sigmoid(model.get_classifier()(features))
        return features.float().cpu(), probabilities.float().cpu()


def pad_square(image: Image.Image) -> Image.Image:
    """Centre the image on a white square with the image's longer side."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
