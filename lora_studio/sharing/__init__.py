"""A LoRA as one folder to share: the file, previews, a grid, and the texts that other programs and sites read."""
