"""The SDXL base model: locate, load, quantize, encode text, generate images."""
