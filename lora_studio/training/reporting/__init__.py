"""What a run reports: log lines, run records, health checks, LoRA metadata."""
