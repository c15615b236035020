"""What the tabs show of the workspace: jobs, run history, tests, LoRA files and plans."""
