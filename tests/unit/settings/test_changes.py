"""The settings in which two recipes differ."""

from __future__ import annotations

from lora_studio.settings.changes import setting_changes
from lora_studio.settings.recipe import Recipe


def test_changes_have_both_values_on_one_short_line() -> None:
    prompts = ["{trigger}, a house by a lake", "clock"]
    changes = setting_changes(Recipe(unet_lr=1e-4, epochs=12, sample_prompts=prompts), Recipe(epochs=12))
    assert [(change.name, change.before_text, change.value_text) for change in changes] == [
        ("unet_lr", "5e-4", "1e-4"),
        ("sample_prompts", "{trigger}", "{trigger}, a house by…"),
    ]
    assert setting_changes(Recipe(), Recipe()) == []
