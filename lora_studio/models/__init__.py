"""The SDXL base model: locate, load, quantize, encode text, build a sampling pipeline."""
