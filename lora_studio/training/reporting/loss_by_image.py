"""The mean loss by image, relative to the loss that its timesteps have on average: which images are learned worst.

```
image_losses.json    {"epoch": 3, "images": [{"image", "samples", "loss", "ratio"}...]}, the highest ratio first
```
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, Field

from lora_studio.events import ImageLossesEvent
from lora_studio.files import write_json
from lora_studio.training.reporting.loss_by_timestep import BINS

IMAGE_LOSSES_FILE = "image_losses.json"
WINDOW = 10  # samples per image that the means are over: fewer are mostly noise, more are out of date
MIN_SAMPLES = 4  # of an image that is reported as learned worst
MAX_WORST = 5


class ImageLoss(BaseModel):
    """The mean weighted loss of an image over about `samples` samples, and its ratio to the expected loss.

    The expected loss is the mean over all images at the image's timesteps: the loss differs several times between
    timesteps, and with few samples the timesteps of images differ.
    """

    image: str
    samples: float
    loss: float
    ratio: float


class ImageLosses(BaseModel):
    """Accumulates the losses of training images: their sum by image and by timestep bin, and counts by both.

    The weight of earlier samples decays, so that the means are over about the last `WINDOW` samples of an image. Hence
    the counts are not integers.
    """

    sums: dict[str, float] = Field(default_factory=dict)
    counts: dict[str, list[float]] = Field(default_factory=dict)
    bin_sums: list[float] = Field(default_factory=lambda: [0.0] * BINS)

    def add(self, images: Iterable[str | None], bins: Iterable[int], losses: Iterable[float]) -> None:
        """Add samples: their images (None: not counted), timestep bins and weighted losses."""
        for image, index, loss in zip(images, bins, losses, strict=True):
            if image is not None:
                self.sums[image] = self.sums.get(image, 0.0) + loss
                self.counts.setdefault(image, [0.0] * BINS)[index] += 1
                self.bin_sums[index] += loss

    def decay(self, samples_per_image: float) -> None:
        """Lower the weight of all samples so far, after an epoch with this many samples per image."""
        kept = max(0.0, 1 - samples_per_image / WINDOW)
        if not kept:
            self.sums, self.counts, self.bin_sums = {}, {}, [0.0] * BINS
            return
        self.sums = {image: kept * total for image, total in self.sums.items()}
        self.counts = {image: [kept * count for count in counts] for image, counts in self.counts.items()}
        self.bin_sums = [kept * total for total in self.bin_sums]

    def ranked(self) -> list[ImageLoss]:
        """Return the losses of all images, the highest ratio first."""
        by_bin = [sum(counts) for counts in zip(*self.counts.values(), strict=True)]
        means = [total / count if count else 0.0 for total, count in zip(self.bin_sums, by_bin, strict=False)]
        found = []
        for image, counts in self.counts.items():
            total, samples = self.sums[image], sum(counts)
            expected = sum(count * mean for count, mean in zip(counts, means, strict=True))
            ratio = total / expected if expected else 1.0
            found.append(ImageLoss(image=image, samples=samples, loss=total / samples, ratio=ratio))
        return sorted(found, key=lambda entry: (-entry.ratio, entry.image))

    def write(self, folder: Path, epoch: int) -> ImageLossesEvent | None:
        """Write the losses of all images after an epoch; return an event with the worst, None if there are none yet."""
        if not (ranked := self.ranked()):
            return None
        entries = [
            {
                "image": entry.image,
                "samples": round(entry.samples, 2),
                "loss": round(entry.loss, 6),
                "ratio": round(entry.ratio, 4),
            }
            for entry in ranked
        ]
        write_json(folder / IMAGE_LOSSES_FILE, {"epoch": epoch, "images": entries})
        worst = [entry for entry in ranked if entry.samples >= MIN_SAMPLES and entry.ratio > 1][:MAX_WORST]
        if not worst:
            return None
        return ImageLossesEvent(
            epoch=epoch,
            file=IMAGE_LOSSES_FILE,
            worst=[entry.image for entry in worst],
            ratios=[round(entry.ratio, 4) for entry in worst],
        )
