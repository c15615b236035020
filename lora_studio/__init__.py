"""LoRA Studio: curate, tag, plan, train and test SDXL LoRAs."""

__version__ = "0.1.0"
