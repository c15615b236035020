"""The settings of a recipe, section by section; `lora_studio.settings.recipe` joins them."""
