"""A plan's steps, buckets and waste are those of the batches that every rank trains on, for random datasets."""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_studio.dataset.buckets import Size, bucket_plan, place_for
from lora_studio.dataset.training_images import read_images
from lora_studio.planning.estimate import RunEstimator
from lora_studio.planning.plan import Plan, plan
from lora_studio.planning.steps import StepCount, with_global_batch
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset
from lora_studio.training.data.collate import Collator
from lora_studio.training.data.dataset import Batch, Dataset, TrainItem, read_dataset
from lora_studio.training.distributed import RankGroup

SIZES = [(256, 256), (300, 200), (200, 300), (512, 256), (640, 640), (900, 200), (90, 70), (64, 64), (33, 400)]
ROTATED = 6  # EXIF orientation that swaps the sides
ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class Drawn:
    """An image to write: its stored size, whether EXIF rotates it, and its content, which duplicates share."""

    stored: Size
    rotated: bool
    content: int

    @property
    def size(self) -> Size:
        """The upright size."""
        width, height = self.stored
        return (height, width) if self.rotated else (width, height)

    def write(self, path: Path) -> None:
        """Write a PNG; the content follows its end, where no reader looks."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blank(self.stored, self.rotated) + struct.pack("<q", self.content))


@cache
def blank(size: Size, rotated: bool) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATED if rotated else 1
    stream = io.BytesIO()
    Image.new("1", size).save(stream, "PNG", exif=exif)
    return stream.getvalue()


@dataclass(frozen=True)
class Case:
    """A dataset of set folders (repeats, images) and loose images, with the settings of a run.

    `subsets` maps the number of a set folder to repeats of its own.
    """

    sets: list[tuple[int, list[Drawn]]]
    loose: list[Drawn]
    prior: list[tuple[int, list[Drawn]]]
    subsets: dict[int, int]
    recipe: dict[str, Any]
    processes: int

    def write(self, folder: Path) -> None:
        for name, sets in (("data", self.sets), ("prior", self.prior)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for number, (repeats, images) in enumerate(sets):
                for index, image in enumerate(images):
                    image.write(folder / name / f"{repeats}_set{number}" / f"{index:02d}.png")
        for index, image in enumerate(self.loose):
            image.write(folder / "data" / f"loose{index:02d}.png")

    def files(self, folder: Path) -> dict[str, Any]:
        """Return the dataset's folders as arguments of `plan` and fields of a job."""
        subsets = [
            Subset(image_dir=folder / "data" / f"{self.sets[number][0]}_set{number}", num_repeats=repeats)
            for number, repeats in self.subsets.items()
        ]
        return {"regularization": folder / "prior" if self.prior else None, "subsets": subsets}

    def images(self, folder: Path, recipe: Recipe) -> Iterator[tuple[Path, Drawn, int]]:
        """Yield every image that can be trained on, with its repeats in an epoch."""
        data = folder / "data"
        if not self.sets:
            for index, image in enumerate(self.loose):
                yield data / f"loose{index:02d}.png", image, recipe.repeats or 1
        chosen = self.subsets or {number: recipe.repeats or own for number, (own, _) in enumerate(self.sets)}
        for number, repeats in chosen.items():
            own, images = self.sets[number]
            for index, image in enumerate(images):
                yield data / f"{own}_set{number}" / f"{index:02d}.png", image, repeats


drawn = st.builds(Drawn, st.sampled_from(SIZES), st.booleans(), st.integers(0, 12))
images = st.lists(drawn, min_size=1, max_size=5)
sets = st.lists(st.tuples(st.integers(1, 4), images), max_size=3)
recipes = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 5),
        "gradient_accumulation_steps": st.integers(1, 4),
        "epochs": st.integers(1, 3),
        "repeats": st.none() | st.integers(1, 3),
        "max_train_steps": st.none() | st.integers(1, 30),
        "validation_split": st.sampled_from([0.0, 0.0, 0.1, 0.4]),
        "enable_bucket": st.booleans(),
        "bucket_no_upscale": st.booleans(),
        "resolution": st.just(256),
        "min_bucket_reso": st.just(64),
        "max_bucket_reso": st.just(512),
        "seed": st.integers(0, 3),
    }
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    chosen = draw(sets)
    subsets = {}
    if chosen and draw(st.booleans()):
        numbers = st.integers(0, len(chosen) - 1)
        subsets = draw(st.dictionaries(numbers, st.integers(1, 4), min_size=1))
    loose = draw(st.lists(drawn, min_size=0 if chosen else 1, max_size=4))
    prior = draw(st.just([]) | sets)
    return Case(chosen, loose, prior, dict(sorted(subsets.items())), draw(recipes), draw(st.integers(1, 4)))


def balanced(own: list[int], samples: int) -> list[int]:
    """Take regularisation images with their repeats until there are enough, then each once more, round after round."""
    taken = [0] * len(own)
    for index, repeats in enumerate(own):
        if sum(taken) < samples:
            taken[index] = repeats
    while own and sum(taken) < samples:
        for index in range(len(own)):
            if sum(taken) < samples:
                taken[index] += 1
    return taken


def counted_by_hand(case: Case, folder: Path, recipe: Recipe, validation: set[Path]) -> tuple[Counter[Size], StepCount]:
    """Count an epoch's samples per bucket, and the steps of the run, image by image and batch by batch."""
    samples: Counter[Size] = Counter()
    for path, image, repeats in case.images(folder, recipe):
        if path not in validation:
            samples[place_for(recipe, *image.size).bucket] += repeats
    folders = sorted(
        (f"{repeats}_set{number}", repeats, members) for number, (repeats, members) in enumerate(case.prior)
    )
    prior = [(image, repeats) for _, repeats, members in folders for image in members]
    taken = balanced([repeats for _, repeats in prior], samples.total())
    for (image, _), repeats in zip(prior, taken, strict=True):
        samples[place_for(recipe, *image.size).bucket] += repeats
    size = recipe.batch_size * case.processes
    batches = []
    for count in samples.values():
        left = count
        while left > 0:
            batches.append(min(left, size))
            left -= size
    steps, begun = 0, 0
    limit = recipe.max_train_steps or 10**9
    per_epoch = ceil(len(batches) / recipe.gradient_accumulation_steps)
    for _ in range(recipe.epochs):
        if steps < limit:
            begun += 1
            steps = min(steps + per_epoch, limit)
    empty = sum(size - filled for filled in batches)
    return +samples, StepCount(samples.total(), len(batches), per_epoch, steps, begun, empty)


def collator(job: TrainJob, dataset: Dataset, counts: StepCount, ranks: RankGroup) -> Collator:
    """Return the collator of a rank, without the models and caches that its tensors need."""
    unused = dict.fromkeys(
        ("noise_scheduler", "prediction_type", "scaling_factor", "tokenizers", "latents", "texts", "device", "dtype")
    )
    return Collator(
        job=job,
        dataset=dataset,
        steps_per_epoch=counts.steps_per_epoch,
        total_steps=counts.total_steps,
        ranks=ranks,
        **cast(Any, unused),
    )


def start_ranks(case: Case, folder: Path, planned: Plan) -> tuple[list[Collator], StepCount]:
    """Return the collators of all ranks of a run with the planned recipe, and its steps, as training starts them."""
    files = case.files(folder)
    recipe = with_global_batch(planned.recipe, case.processes)
    job = TrainJob(name="a", dataset=folder / "data", base="embedded", num_processes=case.processes, **files)
    job = job.model_copy(update={"recipe": recipe})
    dataset = read_dataset(job.dataset, recipe, **files)
    counts = dataset.step_count(recipe)
    ranks = [RankGroup(rank, case.processes) for rank in range(case.processes)]
    return [collator(job, dataset, counts, group) for group in ranks], counts


def waste(items: list[TrainItem]) -> Counter[tuple[Size, float]]:
    """Count items by bucket and by the share of the scaled image that is cropped."""
    found: Counter[tuple[Size, float]] = Counter()
    for item in items:
        (width, height), (left, top) = item.placement.scaled, item.placement.bucket
        found[item.placement.bucket, 1 - left * top / (width * height)] += item.repeats
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_the_planned_steps_and_waste_are_those_of_every_ranks_batches(
    tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    folder = tmp_path_factory.mktemp("planned")
    case.write(folder)
    files = case.files(folder)
    planned = plan(folder / "data", overrides=case.recipe, num_processes=case.processes, **files)
    recipe = planned.recipe
    ranks, counts = start_ranks(case, folder, planned)
    dataset = ranks[0].dataset
    validation = {item.path for item in dataset.validation_items}
    assert not {item.sha256 for item in dataset.validation_items} & {item.sha256 for item in dataset.items}
    buckets, by_hand = counted_by_hand(case, folder, recipe, validation)
    assert planned.steps == counts == by_hand

    # every rank trains its shard of every batch, and each sample is in one of them
    size = recipe.batch_size * case.processes
    seen: list[Batch] = []
    for step in range(counts.total_steps):
        batches = ranks[0].batches(step)
        assert 1 <= len(batches) <= recipe.gradient_accumulation_steps
        shards = [shard for rank in ranks for shard in rank.shards(step)]
        samples = {first + index: item for first, shard in shards for index, item in enumerate(shard)}
        assert sum(len(shard) for _, shard in shards) == len(samples)
        assert [samples[index] for index in range(len(samples))] == [item for batch in batches for item in batch]
        assert all(len(shard) <= recipe.batch_size for _, shard in shards)
        if step < counts.steps_per_epoch:
            seen += batches
    assert not {item.path for batch in seen for item in batch} & validation

    # a whole epoch has the planned samples, buckets and empty places
    if counts.total_steps >= counts.steps_per_epoch:
        assert Counter(item.placement.bucket for batch in seen for item in batch) == buckets
        assert sum(size - len(batch) for batch in seen) == planned.steps.empty_slots
        run = RunEstimator(
            read_images(folder / "data", subsets=files["subsets"]),
            read_images(files["regularization"]) if case.prior else None,
            base=None,
            vram_gib=None,
            gpu="",
            speeds=[],
            processes=case.processes,
        )
        largest = max(ranks[0].batch_pixels(step) for step in range(counts.steps_per_epoch))
        assert run.largest_batch_pixels(recipe) == largest
        assert run.own_share(recipe) == sum(item.repeats for item in dataset.items) / counts.samples_per_epoch

    # Dataset shows the same buckets, crops and empty places of the images without regularisation
    own = read_images(folder / "data", subsets=files["subsets"]).split(recipe).training
    shown = bucket_plan([(image.path, image.size, repeats) for image, repeats in own], recipe)
    cropped = {placed.path: (bucket.size, placed.cropped) for bucket in shown for placed in bucket.images}
    crops: Counter[tuple[Size, float]] = Counter()
    for image, repeats in own:
        crops[cropped[image.path]] += repeats
    assert crops == waste(dataset.items)
    if case.processes == 1 and not case.prior:
        assert sum(bucket.empty_slots for bucket in shown) == planned.steps.empty_slots
        assert {bucket.size: bucket.samples for bucket in shown} == buckets
