"""Image files: decoding, masks, kohya's set folders, cached headers."""
