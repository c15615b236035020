"""Training: from captioned images and a base model to a LoRA file."""
