"""The LoRA network and its file formats."""
