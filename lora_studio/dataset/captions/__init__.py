"""Captions: text files, bulk edits with undo, lint, statistics, token counts."""
