"""The LoRA network and its file format."""
