"""Reusable parts of the interface: forms, charts, thumbnails, HTML."""
