"""Settings of recipes and jobs: each one declared once, with its bounds, default and reason."""
