"""BLIP captioners (Li et al. 2022): a sentence about a picture, from a transformers folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import BlipForConditionalGeneration, BlipProcessor
from transformers.utils import logging

from lora_studio.choices import Precision
from lora_studio.dataset.taggers.interface import Description
from lora_studio.device import torch_device, torch_dtype
from lora_studio.errors import InputError

BEAMS = 3
MOST_TOKENS = 60  # where the model's own generation settings name no limit


@dataclass(frozen=True)
class BlipTagger:
    """A loaded BLIP captioner with its processor."""

    name: str
    model: Any
    processor: Any

    @classmethod
    def load(cls, folder: Path, *, name: str) -> Self:
        """Load from a folder, in fp32 on a CPU, in half precision on a GPU; raises InputError if it is broken."""
        device = torch_device()
        dtype, _ = torch_dtype(Precision.AUTO, device)
        logging.disable_progress_bar()
        try:
            processor = BlipProcessor.from_pretrained(folder, local_files_only=True)
            model = BlipForConditionalGeneration.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=dtype
            )
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise InputError(
                f"The captioner in {folder} cannot be loaded: {str(error).splitlines()[0] if str(error) else error!r}",
                "Download it anew, with all its files.",
                code="tagger_broken",
            ) from error
        return cls(name, model.eval().to(device), processor)

    @torch.inference_mode()
    def describe(self, images: Sequence[Image.Image]) -> list[Description]:
        """A sentence about each image, the likeliest of a beam search: the same every time."""
        inputs = self.processor(images=list(images), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        most = self.model.generation_config.max_new_tokens or MOST_TOKENS
        tokens = self.model.generate(pixel_values=pixels, max_new_tokens=most, num_beams=BEAMS, do_sample=False)
        said = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [Description(sentence=" ".join(text.split())) for text in said]
