"""Find the batch size of a tagger while it runs."""

from __future__ import annotations

from dataclasses import dataclass

INITIAL_SIZE = 2
MAX_SIZE = 64
MAX_TIME_RATIO = 0.9  # a doubled batch must cut the time per image at least to this share
MAX_SECONDS = 5.0  # per batch: a stop request waits for the current batch


@dataclass
class BatchSize:
    """A batch size that doubles while that cuts the time per image, halves when memory runs out, and then is final.

    The first batch is not timed, since libraries initialise during it.
    """

    size: int = INITIAL_SIZE
    is_final: bool = False
    _warm: bool = False
    _previous_seconds_per_image: float | None = None  # at half the batch size

    def record(self, images: int, seconds: float) -> None:
        """Record the time that a batch took, and choose the next size."""
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
        """Halve the size after memory ran out; return False if the size is 1 already."""
        self.is_final = True
        if self.size == 1:
            return False
        self.size //= 2
        return True
