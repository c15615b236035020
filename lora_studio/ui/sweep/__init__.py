"""The Test tab."""
