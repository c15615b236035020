"""Read-only state that the tabs show: jobs, run history, LoRA files."""
