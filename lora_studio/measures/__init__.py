"""Measures of generated pictures by their features: does the LoRA work, does it copy, does it leak."""
