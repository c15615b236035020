"""How many pictures a model is given at once, found while it works."""

from __future__ import annotations

from dataclasses import dataclass

FIRST = 2
MOST = 64
PAYS = 0.9  # a doubled batch must cut the time of a picture to this share at least
LONGEST = 5.0  # seconds; a stop waits for a batch


@dataclass
class BatchSize:
    """Doubles as long as that pays, halves when memory runs out, and then stays.

    The first batch is no measure: libraries prepare themselves during it.
    """

    size: int = FIRST
    settled: bool = False
    _warm: bool = False
    _before: float | None = None  # seconds a picture with half the size

    def took(self, images: int, seconds: float) -> None:
        """A batch of so many images took so long."""
        if self.settled or images < self.size:
            return
        if not self._warm:
            self._warm = True
            return
        each = seconds / images
        if self._before is not None and each > PAYS * self._before:
            self.size, self.settled = max(1, self.size // 2), True
            return
        self._before = each
        if 2 * self.size > MOST or 2 * seconds > LONGEST:
            self.settled = True
        else:
            self.size *= 2

    def too_large(self) -> bool:
        """Memory ran out: whether a smaller batch is left to try."""
        self.settled = True
        if self.size == 1:
            return False
        self.size //= 2
        return True
