"""Train on Hugging Face Jobs instead of this computer: upload, start, follow, download."""
