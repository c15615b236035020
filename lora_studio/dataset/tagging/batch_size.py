"""How many pictures a model is given at once, found while it works."""

from __future__ import annotations

from dataclasses import dataclass

INITIAL_SIZE = 2
MAX_SIZE = 64
MAX_TIME_RATIO = 0.9  # a doubled batch must cut the time of a picture to this share at least
MAX_SECONDS = 5.0  # seconds; a stop waits for a batch


@dataclass
class BatchSize:
    """Doubles as long as that pays, halves when memory runs out, and then stays.

    The first batch is no measure: libraries prepare themselves during it.
    """

    size: int = INITIAL_SIZE
    is_final: bool = False
    _warm: bool = False
    _previous_seconds_per_image: float | None = None  # seconds a picture with half the size

    def record(self, images: int, seconds: float) -> None:
        """A batch of so many images took so long."""
        if self.is_final or images < self.size:
            return
        if not self._warm:
            self._warm = True
            return
        each = seconds / images
        if self._previous_seconds_per_image is not None and each > MAX_TIME_RATIO * self._previous_seconds_per_image:
            self.size, self.is_final = max(1, self.size // 2), True
            return
        self._previous_seconds_per_image = each
        if 2 * self.size > MAX_SIZE or 2 * seconds > MAX_SECONDS:
            self.is_final = True
        else:
            self.size *= 2

    def shrink(self) -> bool:
        """Memory ran out: whether a smaller batch is left to try."""
        self.is_final = True
        if self.size == 1:
            return False
        self.size //= 2
        return True
