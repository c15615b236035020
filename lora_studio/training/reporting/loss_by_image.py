"""The mean loss by image, relative to that of all images: which images are learned worst.

```
image_losses.json    {"epoch": 3, "images": [{"image", "samples", "loss", "ratio", "relative_loss", "significant"}...]},
                     the highest ratio first; relative_loss is left out if the base's loss is unknown
```
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import exp, log, sqrt
from pathlib import Path
from statistics import NormalDist

from pydantic import BaseModel, Field

from lora_studio.events import ImageLossesEvent
from lora_studio.files import write_json
from lora_studio.training.reporting.loss_by_timestep import BINS
from lora_studio.workspace.job_folder import IMAGE_LOSSES_FILE

WINDOW = 10  # samples per image that the means are over: fewer are mostly noise, more are out of date
MIN_SAMPLES = 3  # the weight of those of an image that is reported as learned worst: about four draws
MAX_WORST = 5
MAX_WEIGHT = 1e6
MAX_CHANCE = 0.05  # that any image at all is marked as significant by chance


class ImageLoss(BaseModel):
    """The mean weighted loss of an image over about `samples` samples, and its ratio to that of all images.

    `relative_loss` is the mean relative to the base's loss at each sample's timestep, which `ratio` compares; if that
    is None, the losses are compared with the mean of all images in their timestep bins. `significant` is True if the
    image differs from the others by more than chance.
    """

    image: str
    samples: float
    loss: float
    ratio: float
    relative_loss: float | None = None
    significant: bool = False


class RelativeSums(BaseModel):
    """Sums over samples of an image of their relative losses r, each with a weight w."""

    weight: float = 0.0  # sum of w
    squared_weight: float = 0.0  # of w^2
    total: float = 0.0  # of w r
    logs: float = 0.0  # of w log r
    squared_logs: float = 0.0  # of w (log r)^2

    def add(self, relative: float, weight: float) -> None:
        """Add a sample."""
        self.weight += weight
        self.squared_weight += weight**2
        self.total += weight * relative
        self.logs += weight * log(relative)
        self.squared_logs += weight * log(relative) ** 2

    def scaled(self, factor: float) -> RelativeSums:
        """Return the sums with all weights times a factor."""
        sums = {name: factor * value for name, value in self if name != "squared_weight"}
        return RelativeSums(squared_weight=factor**2 * self.squared_weight, **sums)


class ImageLosses(BaseModel):
    """Accumulates the losses of training images: their sum by image and by timestep bin, and counts by both.

    Later samples weigh more, so that the means are over about the last `WINDOW` samples of an image; `weight` is that
    of the next sample. Hence the counts are not integers.
    """

    sums: dict[str, float] = Field(default_factory=dict)
    counts: dict[str, list[float]] = Field(default_factory=dict)
    bin_sums: list[float] = Field(default_factory=lambda: [0.0] * BINS)
    relative: dict[str, RelativeSums] = Field(default_factory=dict)
    weight: float = 1.0

    def add(
        self,
        images: Sequence[str | None],
        bins: Iterable[int],
        losses: Sequence[float],
        expected: Iterable[float] | None = None,
    ) -> None:
        """Add samples: their images (None: not counted), timestep bins, weighted losses, and the base's if known."""
        for image, index, loss in zip(images, bins, losses, strict=True):
            if image is not None:
                self.sums[image] = self.sums.get(image, 0.0) + self.weight * loss
                self.counts.setdefault(image, [0.0] * BINS)[index] += self.weight
                self.bin_sums[index] += self.weight * loss
        for image, loss, base in zip(images, losses, expected or (), strict=expected is not None):
            if image is not None and loss > 0 and base > 0:
                self.relative.setdefault(image, RelativeSums()).add(loss / base, self.weight)
        if counted := sum(image is not None for image in images):
            self.weight *= exp(counted / len(self.sums) / WINDOW)
        if self.weight > MAX_WEIGHT:
            self._rescale()

    def _rescale(self) -> None:
        """Divide all weights by that of the next sample."""
        factor, self.weight = 1 / self.weight, 1.0
        self.sums = {image: factor * total for image, total in self.sums.items()}
        self.counts = {image: [factor * count for count in counts] for image, counts in self.counts.items()}
        self.bin_sums = [factor * total for total in self.bin_sums]
        self.relative = {image: sums.scaled(factor) for image, sums in self.relative.items()}

    def ranked(self) -> list[ImageLoss]:
        """Return the losses of all images, the highest ratio first."""
        by_bin = [sum(counts) for counts in zip(*self.counts.values(), strict=True)]
        means = [total / count if count else 0.0 for total, count in zip(self.bin_sums, by_bin, strict=False)]
        compares_relative = bool(self.relative) and self.relative.keys() == self.sums.keys()
        overall = _mean(list(self.relative.values())) if compares_relative else None
        significant = self._significant() if compares_relative else set()
        found = []
        for image, counts in self.counts.items():
            total, samples, relative = self.sums[image], sum(counts), None
            expected = sum(count * mean for count, mean in zip(counts, means, strict=True))
            ratio = total / expected if expected else 1.0
            if overall:
                relative = _mean([self.relative[image]])
                ratio = relative / overall
            found.append(
                ImageLoss(
                    image=image,
                    samples=samples / self.weight,
                    loss=total / samples,
                    ratio=ratio,
                    relative_loss=relative,
                    significant=image in significant,
                )
            )
        return sorted(found, key=lambda entry: (-entry.ratio, entry.image))

    def _significant(self) -> set[str]:
        """Return the images whose log relative loss is above that of the others by more than chance.

        The variance of a sample is pooled over images; the level is divided by their number (Bonferroni).
        """
        known = [sums for sums in self.relative.values() if sums.weight]
        spread = sum(sums.squared_logs - sums.logs**2 / sums.weight for sums in known)
        freedom = sum(sums.weight - sums.squared_weight / sums.weight for sums in known)
        if len(known) < 2 or freedom <= 0 or spread <= 0:
            return set()
        variance = spread / freedom
        limit = NormalDist().inv_cdf(1 - MAX_CHANCE / len(known))
        weight, squared, logs = (
            sum(getattr(sums, name) for sums in known) for name in ("weight", "squared_weight", "logs")
        )
        found = set()
        for image, own in self.relative.items():
            others = weight - own.weight
            difference = own.logs / own.weight - (logs - own.logs) / others
            error = sqrt(variance * (own.squared_weight / own.weight**2 + (squared - own.squared_weight) / others**2))
            if own.weight >= MIN_SAMPLES * self.weight and difference > limit * error:
                found.add(image)
        return found

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
                **({} if entry.relative_loss is None else {"relative_loss": round(entry.relative_loss, 4)}),
                "significant": entry.significant,
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


def read_image_losses(run: Path) -> list[ImageLoss]:
    """Return the losses by image that the run in a folder has written; [] before that, or if they are damaged."""
    try:
        written = json.loads((run / IMAGE_LOSSES_FILE).read_bytes())
        return [ImageLoss.model_validate(entry) for entry in written["images"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _mean(sums: Sequence[RelativeSums]) -> float:
    """Return the mean relative loss of samples."""
    return sum(each.total for each in sums) / sum(each.weight for each in sums)
