"""Images and captions: reading, checking, curating, importing, captioning. Only `taggers/` imports torch."""
