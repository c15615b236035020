"""Values of settings as text."""

from __future__ import annotations

from decimal import Decimal


def format_value(value: object) -> str:
    """Return a setting's value in its usual notation: 5e-4, 0.05, on, off, empty. Numbers keep their exact value."""
    if value is None or value == "":
        return "empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        exact = Decimal(repr(value)).normalize()
        if value and not 0.001 <= abs(value) < 1e6:
            mantissa, _, exponent = f"{exact:e}".partition("e")
            return f"{mantissa}e{int(exponent)}"
        return f"{exact:f}"
    if isinstance(value, list | tuple):
        return "\n".join(format_value(item) for item in value)
    return str(value)
