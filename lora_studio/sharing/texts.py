"""The texts of a release: a model card for the Hub, a sidecar for A1111 and Forge, and a description for Civitai.

The model card has the metadata of https://huggingface.co/docs/hub/model-cards, with the tags that the Hub's page of a
LoRA needs for its gallery and its trigger words. A1111 and Forge read NAME.json beside NAME.safetensors
(`extensions-builtin/Lora/ui_edit_user_metadata.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from lora_studio.settings.declare import setting_label
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.values import format_value
from lora_studio.sharing.facts import LoraFacts
from lora_studio.sharing.options import License, ReleaseOptions, license_of

DEFAULT_STRENGTH = 1.0
TAGS = (
    "text-to-image",
    "stable-diffusion-xl",
    "stable-diffusion-xl-diffusers",
    "diffusers",
    "lora",
    "template:sd-lora",
)
ADULT_TAG = "not-for-all-audiences"
SHOWN_TAGS = 12
# Settings of a run that people compare.
SETTINGS = (
    *("network_type", "network_dim", "network_alpha", "unet_lr", "text_encoder_lr", "optimizer", "lr_scheduler"),
    *("batch_size", "resolution"),
)


@dataclass(frozen=True)
class Release:
    """All that the texts are made of. `strength_reason` says how the strength was found; empty if it is the default.

    `gallery` has the pictures of the model card: path in the folder, and prompt.
    """

    name: str
    facts: LoraFacts
    options: ReleaseOptions
    strength: float = DEFAULT_STRENGTH
    strength_reason: str = ""
    gallery: Sequence[tuple[PurePosixPath, str]] = ()

    @property
    def example_prompt(self) -> str:
        """A prompt to try: that of the first picture, else the trigger word, with the base's quality tags."""
        if self.gallery:
            return self.gallery[0][1]
        base = self.facts.known_base
        return base.prompt(self.facts.trigger_word) if base else self.facts.trigger_word

    @property
    def negative_prompt(self) -> str:
        """The negative prompt that the base's authors recommend; empty if they name none."""
        return self.facts.known_base.negative_prompt if self.facts.known_base else ""

    @property
    def license(self) -> tuple[License | None, str, str]:
        """Identifier, name and link of the licence: the chosen one, else the base's."""
        if self.options.license is not None:
            return self.options.license, self.options.license_name, self.options.license_link
        return license_of(self.facts.known_base)


def model_card(release: Release) -> str:
    """Return README.md for the Hub: metadata in YAML, then what a person wants to know."""
    from huggingface_hub import ModelCardData

    facts = release.facts
    identifier, name, link = release.license
    other = identifier is License.OTHER
    data = ModelCardData(
        base_model=facts.base_repo or None,
        license=identifier.value if identifier else None,
        license_name=(name.lower().replace(" ", "-") or None) if other else None,
        license_link=(link or None) if other else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*TAGS, *([ADULT_TAG] if release.options.adult else [])],
        instance_prompt=facts.trigger_word or None,
        widget=[{"text": prompt, "output": {"url": str(path)}} for path, prompt in release.gallery] or None,
    )
    sections = [
        f"# {release.name}",
        "<Gallery />" if release.gallery else "",
        release.options.description.strip(),
        _usage(release),
        _training(facts),
        _license_section(release),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def sidecar(release: Release) -> str:
    """Return NAME.json, from which A1111 and Forge fill in trigger word, strength, negative prompt and notes."""
    facts = release.facts
    values: dict[str, Any] = {
        "description": release.options.description.strip(),
        "sd version": "SDXL",
        "activation text": facts.trigger_word,
        "preferred weight": release.strength,
        "negative text": release.negative_prompt,
        "notes": " ".join(_sentences(release)),
    }
    return json.dumps(values, indent=4, ensure_ascii=False) + "\n"


def civitai_text(release: Release) -> str:
    """Return the fields of Civitai's upload form with what to enter, in its order."""
    facts, recipe = release.facts, release.facts.job.recipe if release.facts.job else None
    fields = {
        "Name": release.name,
        "Type": "LoRA",
        "Tags": ", ".join(tag for tag, _ in facts.tags[:SHOWN_TAGS]),
        "Base model": _civitai_base(facts),
        "Training epochs": str(recipe.epochs) if recipe else "",
        "Training steps": str(facts.figures.steps) if facts.figures and facts.figures.steps else "",
        "Trigger words": facts.trigger_word,
        "Recommended weight": f"{release.strength:g}",
        "Usage tips": " ".join(_sentences(release)),
    }
    lines = [f"{name}: {value}" for name, value in fields.items() if value]
    description = release.options.description.strip()
    return "\n".join([*lines, "", "Description:", description or _training(facts)]) + "\n"


def _civitai_base(facts: LoraFacts) -> str:
    """Return Civitai's name of the base's family, of which its form has a list."""
    name = facts.base_name.lower()
    families = {"pony": "Pony", "illustrious": "Illustrious", "noobai": "NoobAI"}
    return next((family for word, family in families.items() if word in name), "SDXL 1.0")


def _sentences(release: Release) -> list[str]:
    """Return how to use the LoRA as sentences."""
    found = []
    if release.facts.trigger_word:
        found.append(f"Write {release.facts.trigger_word} in the prompt.")
    reason = f" ({release.strength_reason})" if release.strength_reason else ""
    found.append(f"Strength {release.strength:g}{reason}.")
    if release.facts.base_name:
        found.append(f"Trained on {release.facts.base_name}.")
    return found


def _usage(release: Release) -> str:
    facts = release.facts
    lines = ["## How to use it", "", *(f"- {sentence}" for sentence in _sentences(release))]
    if release.example_prompt:
        lines.append(f"- Try: `{release.example_prompt}`")
    if release.negative_prompt:
        lines.append(f"- Negative prompt: `{release.negative_prompt}`")
    lines += [
        f"- A1111, Forge: copy {release.name}.safetensors and the files beside it into models/Lora, and write "
        f"`<lora:{release.name}:{release.strength:g}>`. ComfyUI: models/loras.",
    ]
    if facts.base_repo:
        lines += ["", "```python", *_snippet(release), "```"]
    return "\n".join(lines)


def _snippet(release: Release) -> list[str]:
    """Return the lines that draw an image in diffusers."""
    facts = release.facts
    return [
        "import torch",
        "from diffusers import StableDiffusionXLPipeline",
        "",
        f"pipe = StableDiffusionXLPipeline.from_pretrained({facts.base_repo!r}, dtype=torch.float16).to('cuda')",
        f"pipe.load_lora_weights('.', weight_name={release.name + '.safetensors'!r}, adapter_name='lora')",
        f"pipe.set_adapters('lora', {release.strength:g})",
        f"image = pipe({release.example_prompt!r}).images[0]",
    ]


def _training(facts: LoraFacts) -> str:
    """Return how the LoRA was trained and measured; empty for a file that the studio did not train."""
    if facts.job is None:
        return ""
    recipe = facts.job.recipe
    rows = [("Base model", facts.base_name)]
    if facts.images:
        rows.append(("Training images", str(facts.images)))
    if facts.figures and facts.figures.steps:
        rows.append(("Steps", f"{facts.figures.steps:,}"))
    rows += [(setting_label(Recipe, name), format_value(getattr(recipe, name))) for name in SETTINGS]
    lines = ["## How it was trained", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    if facts.tags:
        shown = ", ".join(f"{tag} ({count})" for tag, count in facts.tags[:SHOWN_TAGS])
        lines += ["", f"Most frequent tags of the captions: {shown}."]
    if measured := _measured(facts):
        lines += ["", measured]
    return "\n".join(lines)


def _measured(facts: LoraFacts) -> str:
    """Return the fixed-noise loss relative to the base's and the verdict, as sentences; empty without figures."""
    figures = facts.figures
    if figures is None:
        return ""
    found = []
    losses = list(figures.validation.values())
    if losses and figures.base_loss:
        images = "images of the validation split" if figures.split == "validation" else "training images"
        change = losses[-1] / figures.base_loss - 1
        found.append(f"Fixed-noise loss on {images}: {change:+.1%} against the base alone.")
    if figures.verdict is not None:
        found.append(f"Verdict: {figures.verdict.title}. {figures.verdict.evidence}")
    return " ".join(found)


def _license_section(release: Release) -> str:
    identifier, name, link = release.license
    if identifier is None:
        return ""
    text = name or identifier.value
    return f"## Licence\n\n{f'[{text}]({link})' if link else text}"
