"""Duplicate detection: exact, near, mirrored and similar images."""
