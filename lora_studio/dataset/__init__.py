"""Images and captions: import, scan, curation, tagging, caption edits. Only `tagging/` imports torch."""
