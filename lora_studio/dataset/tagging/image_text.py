"""Image-text models of transformers that write a text for an image and an instruction.

Florence-2, Qwen-VL, LLaVA (JoyCaption), BLIP-2, PaliGemma and the other classes of AutoModelForImageTextToText, in the
files that `save_pretrained` writes. Models with a chat template get the prompt as the user's message with the image;
others get it as their text input. Code that comes with a model is never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jinja2 import TemplateError
from PIL import Image
from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import AutoModelForImageTextToText
from transformers.models.auto.processing_auto import AutoProcessor
from transformers.utils import logging

from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.dataset.tagging.labels import Label
from lora_studio.device import torch_device, torch_dtype
from lora_studio.errors import InputError
from lora_studio.settings.choices import Precision

MAX_SIDE = 1024  # px; Qwen-VL would turn a large photo into thousands of image tokens
CHAT_PROMPT = (
    "Describe this image in two or three sentences, as a caption for training an image model. Name the subject, its "
    "pose and clothes, the setting, the light and the style. Begin with the subject."
)
TASK_PROMPTS = {"florence2": "<DETAILED_CAPTION>", "paligemma": "caption en"}  # of models without a chat template
_ENDS = (".", "!", "?", "。", "\N{FULLWIDTH EXCLAMATION MARK}", "\N{FULLWIDTH QUESTION MARK}")


@dataclass(frozen=True)
class ImageTextCaptioner:
    """A loaded model with its processor. `text` is the prompt as the model reads it, for every image."""

    name: str
    model: Any
    processor: Any
    text: str
    max_new_tokens: int
    labels: tuple[Label, ...] = ()
    image_size: int = MAX_SIDE // 2  # images are decoded at twice this size at least

    @classmethod
    def load(cls, folder: Path, *, name: str, prompt: str, max_new_tokens: int, on_cpu: bool = False) -> Self:
        """Load from a folder, in fp32 on a CPU and in half precision on a GPU.

        An empty `prompt` asks for a detailed caption. With `on_cpu`, a GPU is not used. Raises InputError if a file is
        broken or weights are missing.
        """
        device = torch.device("cpu") if on_cpu else torch_device()
        dtype, _ = torch_dtype(Precision.AUTO, device)
        logging.disable_progress_bar()
        try:
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, loaded = AutoModelForImageTextToText.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                use_kernels=False,
                dtype=dtype,
                output_loading_info=True,
            )
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise InputError(
                f"The captioner in {folder} cannot be loaded: {reason}",
                "Download it again with all its files; a model that needs code of its own cannot be used.",
                code="tagger_broken",
            ) from error
        if missing := sorted(loaded["missing_keys"]):
            raise InputError(
                f"The captioner in {folder} has no weights for {missing[0]} and {len(missing) - 1} more tensors.",
                "Use the version of this model for transformers, such as florence-community/Florence-2-base.",
                code="tagger_broken",
            )
        model = model.eval().to(device)
        if not model.config.is_encoder_decoder and hasattr(processor, "tokenizer"):
            processor.tokenizer.padding_side = "left"
        return cls(name, model, processor, prompt_text(processor, model.config.model_type, prompt), max_new_tokens)

    def preprocess(self, image: Image.Image) -> Image.Image:
        """Return an image with at most MAX_SIDE px on its longer side; the model's processor does the rest."""
        if max(image.size) > MAX_SIDE:
            image = image.copy()
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        return image

    @torch.inference_mode()
    def predict(self, inputs: Sequence[Image.Image]) -> list[Prediction]:
        """Return a text per image, without sampling; one that reaches the limit of tokens ends with a sentence."""
        text = {"text": [self.text] * len(inputs)} if self.text else {}
        batch = self.processor(images=list(inputs), **text, return_tensors="pt", **({"padding": True} if text else {}))
        batch = batch.to(self.model.device, self.model.dtype)
        tokens = self.model.generate(
            **batch, max_new_tokens=self.max_new_tokens, do_sample=False, temperature=None, top_p=None, top_k=None
        )
        prompt = batch.get("input_ids")
        if prompt is not None and tokens.shape[1] >= prompt.shape[1]:  # models without an encoder repeat their input
            length = prompt.shape[1]
            tokens = tokens[:, length:] if torch.equal(tokens[:, :length], prompt) else tokens
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        ends = _end_tokens(self.model)
        return [
            Prediction(sentence=_shortened(found, tokens.shape[1] >= self.max_new_tokens and int(row[-1]) not in ends))
            for row, found in zip(tokens, texts, strict=True)
        ]


def prompt_text(processor: Any, model_type: str, prompt: str) -> str:
    """Return the text that a model gets with an image; empty if it takes none without a prompt."""
    template = getattr(processor, "chat_template", None) or getattr(
        getattr(processor, "tokenizer", None), "chat_template", None
    )
    if not template:
        return prompt or TASK_PROMPTS.get(model_type, "")
    words, token = prompt or CHAT_PROMPT, getattr(processor, "image_token", "") or ""
    parts = [{"type": "image"}, {"type": "text", "text": words}]
    try:
        text = _chat(processor, template, parts)
    except (TemplateError, TypeError, ValueError):
        text = ""
    if words in text and (not token or token in text):
        return text
    text = _chat(processor, template, words)  # templates of language models, as JoyCaption's, take a text
    return text if not token or token in text else _chat(processor, template, f"{token}\n{words}")


def _chat(processor: Any, template: Any, content: object) -> str:
    owner = processor if getattr(processor, "chat_template", None) else processor.tokenizer
    messages = [{"role": "user", "content": content}]
    return str(owner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _end_tokens(model: Any) -> set[int]:
    """Return the tokens that end a text, or fill it after its end."""
    found = (model.generation_config.eos_token_id, model.generation_config.pad_token_id)
    return {token for value in found if value is not None for token in (value if isinstance(value, list) else [value])}


def _shortened(text: str, is_cut: bool) -> str:
    """Return a text in one line; one that was cut off ends with its last whole sentence, if it has one."""
    line = " ".join(text.split())
    end = max((line.rfind(mark) for mark in _ENDS), default=-1) + 1
    return line[:end] if is_cut and end else line
