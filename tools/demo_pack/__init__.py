"""Builds the embedded pack: a small SDXL base, a tagger and a captioner, trained on openly licensed emoji pictures."""
