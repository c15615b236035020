"""CLIP, SigLIP and DINOv2 as models of features, in the transformers layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import AutoModel
from transformers.utils import logging

from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.dataset.tagging.labels import Label
from lora_studio.device import torch_device, torch_dtype
from lora_studio.errors import InputError
from lora_studio.settings.choices import Precision


@dataclass(frozen=True)
class VisionModel:
    """A loaded model with its image processor."""

    name: str
    model: Any
    processor: Any
    labels: tuple[Label, ...] = ()

    @property
    def image_size(self) -> int:
        """The side of the square input, px."""
        config = getattr(self.model.config, "vision_config", self.model.config)
        return int(config.image_size)

    @classmethod
    def load(cls, folder: Path, *, name: str, on_cpu: bool = False) -> Self:
        """Load from a folder, in fp32 on a CPU and in half precision on a GPU.

        With `on_cpu`, a GPU is not used. Raises InputError if it is broken.
        """
        device = torch.device("cpu") if on_cpu else torch_device()
        dtype, _ = torch_dtype(Precision.AUTO, device)
        logging.disable_progress_bar()
        try:
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, use_kernels=False, dtype=dtype
            )
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise InputError(
                f"The model in {folder} cannot be loaded: {str(error).splitlines()[0] if str(error) else error!r}",
                "Download it again, with all its files.",
                code="feature_model_broken",
            ) from error
        return cls(name, model.eval().to(device), processor)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Resize and normalise an image to [3, H, W], as the model was trained."""
        pixels: torch.Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    @torch.inference_mode()
    def predict(self, inputs: Sequence[torch.Tensor]) -> list[Prediction]:
        """Return pooled features: the projected ones of CLIP, the pooler's of SigLIP, the class token of DINOv2."""
        pixels = torch.stack(list(inputs)).to(self.model.device, self.model.dtype)
        run = getattr(self.model, "get_image_features", self.model)
        features = run(pixel_values=pixels).pooler_output.float().cpu().numpy().astype(np.float16)  # [N, F]
        return [Prediction(features=row) for row in features]
