"""Taggers (WD v3, BLIP) and the tagging stage."""
