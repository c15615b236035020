"""Tools on LoRA files: inspect, resize, merge, convert, extract, and edit their metadata. No file is overwritten."""
