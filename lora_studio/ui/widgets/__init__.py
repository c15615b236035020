"""Reusable parts of the interface: forms, charts, thumbnails and HTML templates."""
