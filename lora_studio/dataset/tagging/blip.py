"""BLIP captioners (Li et al. 2022) in the transformers layout: one sentence per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import BlipForConditionalGeneration, BlipProcessor
from transformers.utils import logging

from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.dataset.tagging.labels import Label
from lora_studio.device import torch_device, torch_dtype
from lora_studio.errors import InputError
from lora_studio.settings.choices import Precision

NUM_BEAMS = 3
MAX_NEW_TOKENS = 60  # unless the model's generation settings have a limit


@dataclass(frozen=True)
class BlipTagger:
    """A loaded BLIP captioner with its processor."""

    name: str
    model: Any
    processor: Any
    labels: tuple[Label, ...] = ()

    @property
    def image_size(self) -> int:
        """The side of the square input, px."""
        return int(self.model.config.vision_config.image_size)

    @classmethod
    def load(cls, folder: Path, *, name: str, on_cpu: bool = False) -> Self:
        """Load from a folder, in fp32 on a CPU and in half precision on a GPU.

        With `on_cpu`, a GPU is not used. Raises InputError if it is broken.
        """
        device = torch.device("cpu") if on_cpu else torch_device()
        dtype, _ = torch_dtype(Precision.AUTO, device)
        logging.disable_progress_bar()
        try:
            processor = BlipProcessor.from_pretrained(folder, local_files_only=True)
            model = BlipForConditionalGeneration.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, use_kernels=False, dtype=dtype
            )
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise InputError(
                f"The captioner in {folder} cannot be loaded: {str(error).splitlines()[0] if str(error) else error!r}",
                "Download it again, with all its files.",
                code="tagger_broken",
            ) from error
        return cls(name, model.eval().to(device), processor)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Resize and normalise an image to [3, image_size, image_size]."""
        pixels: torch.Tensor = self.processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    @torch.inference_mode()
    def predict(self, inputs: Sequence[torch.Tensor]) -> list[Prediction]:
        """Return a sentence per image, by deterministic beam search, and the pooled features of the vision model."""
        pixels = torch.stack(list(inputs)).to(self.model.device, self.model.dtype)
        pooled: list[torch.Tensor] = []
        hook = self.model.vision_model.register_forward_hook(
            lambda module, args, output: pooled.append(output.pooler_output)
        )
        try:
            max_new_tokens = self.model.generation_config.max_new_tokens or MAX_NEW_TOKENS
            tokens = self.model.generate(
                pixel_values=pixels, max_new_tokens=max_new_tokens, num_beams=NUM_BEAMS, do_sample=False
            )
        finally:
            hook.remove()
        sentences = self.processor.batch_decode(tokens, skip_special_tokens=True)
        features = pooled[0].float().cpu().numpy().astype(np.float16)  # [N, F]
        return [
            Prediction(sentence=" ".join(text.split()), features=row)
            for text, row in zip(sentences, features, strict=True)
        ]
