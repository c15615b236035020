"""Drawing pictures with a base and a LoRA: the pipeline, the strength sweep, its grid and its measures."""
