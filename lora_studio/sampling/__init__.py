"""Image generation with a base model and LoRAs: pipeline, strength sweep, grid and measures."""
