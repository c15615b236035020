"""One script per claim; each prints a ratio measured in one run."""
