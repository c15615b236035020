"""Prompts that test a LoRA of each kind: what should follow the trigger word, and what should not change without it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lora_studio.settings.choices import LoraKind

WITHOUT_TRIGGER = "Without the trigger word"
CAPTIONS = "Training captions"  # of the run that the tested LoRA is from
PROMPT_SETS: Mapping[LoraKind, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        LoraKind.CHARACTER: {
            "Angles": (
                "{trigger}, portrait, looking at viewer",
                "{trigger}, profile, from side",
                "{trigger}, full body, from behind",
                "{trigger}, upper body, from above",
            ),
            "Other clothes": (
                "{trigger}, wearing a black suit",
                "{trigger}, wearing a winter coat and a scarf",
                "{trigger}, wearing knight's armor",
            ),
            "Places": (
                "{trigger}, walking in a city street at night",
                "{trigger}, on a beach at sunset",
                "{trigger}, sitting in a library, reading",
            ),
            WITHOUT_TRIGGER: (
                "portrait of a person, looking at viewer",
                "two people walking in a park",
                "a house by a lake",
            ),
        },
        LoraKind.STYLE: {
            "Subjects": (
                "{trigger}, portrait of an old man",
                "{trigger}, a cat on a chair",
                "{trigger}, a bowl of fruit on a table",
            ),
            "Places": (
                "{trigger}, a house by a lake",
                "{trigger}, a city street at night, rain",
                "{trigger}, mountains at sunrise",
            ),
            "Angles": (
                "{trigger}, a castle, aerial view",
                "{trigger}, a flower, close-up",
                "{trigger}, a train station, wide shot",
            ),
            WITHOUT_TRIGGER: ("portrait of an old man", "a house by a lake", "a cat on a chair"),
        },
        LoraKind.CONCEPT: {
            "Angles": ("{trigger}", "{trigger}, close-up", "{trigger}, from above, wide shot"),
            "Other subjects": ("an old man with {trigger}", "a child with {trigger}, smiling", "a dog with {trigger}"),
            "Places": ("{trigger}, outdoors, in a forest", "{trigger}, indoors, in a kitchen", "{trigger}, at night"),
            WITHOUT_TRIGGER: ("portrait of an old man", "a forest, wide shot", "a kitchen"),
        },
    }
)


def prompts_of_set(kind: LoraKind, name: str) -> list[str]:
    """Return the prompts of a kind's set; all of the kind's prompts for the name `all`. Raises KeyError."""
    sets = PROMPT_SETS[kind]
    return [prompt for prompts in sets.values() for prompt in prompts] if name == "all" else list(sets[name])
