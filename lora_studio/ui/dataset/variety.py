"""HTML of Curate about the dataset as a whole: diversity, similar images and aspect buckets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.dataset.buckets import Bucket, PlacedImage
from lora_studio.dataset.duplicates.find import DuplicateGroup
from lora_studio.plurals import format_count
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.curation_view import Group, Member, image_size, more_text, set_aside_action
from lora_studio.ui.dataset.image_item import ImageItem
from lora_studio.ui.dataset.view import Action, Pick, Picture, picture
from lora_studio.ui.widgets.html import Tone, card, render
from lora_studio.workspace.project import Home

MAX_GROUPS = 12
MAX_BUCKETS = 12
MAX_IMAGES_PER_BUCKET = 6
MIN_DIVERSITY = 45  # of 100; up to here the card has an amber edge
NEGLIGIBLE_CROP = 0.005  # share of an image's area


class CroppedPicture(NamedTuple):
    """A thumbnail of an image of `width` x `height` pixels; `inset` is what its bucket crops, as a CSS value."""

    picture: Picture
    title: str
    width: int
    height: int
    inset: str


class BucketRow(NamedTuple):
    """A bucket with some of its images; `rest` counts those that are not shown."""

    width: int
    height: int
    lines: Sequence[str]
    pictures: Sequence[CroppedPicture]
    rest: int


def variety_card(contents: Contents) -> Markup:
    """Return the dataset's diversity, or what is needed to compute it; empty without images."""
    found = contents.manifest.diversity
    if found is None:
        text = "The features that a tagger computes show how similar the images are."
        return card("Diversity is known after tagging", text) if contents.items else Markup("")
    more = "Similar poses waste training steps." if contents.similar_groups else ""
    tone = Tone.OK if found.figure > MIN_DIVERSITY else Tone.WARNING
    return card(
        f"Diversity {found.figure} of 100", f"Over {format_count(found.images, 'image')}: {found.words}.", more, tone
    )


def similar_actions(item: ImageItem) -> list[Action]:
    """Return the buttons of an image in a group of similar ones."""
    keep = Action(f"{Pick.KEEP}:{item.id}", "Keep both", "Keeps it, and does not list it here again.", key="k")
    return [set_aside_action(item), keep]


def similar_groups(home: Home, contents: Contents) -> Markup:
    """Return the groups of similar images, none of which is proposed to be set aside; empty if there are none."""
    shown = contents.similar_groups[:MAX_GROUPS]
    if not shown:
        return Markup("")
    return render(
        "dataset/groups.html",
        title="Similar",
        hint="Nearly the same pose or composition, according to the tagger. None is set aside automatically.",
        groups=[_group(home, contents, group) for group in shown],
        more=more_text(len(contents.similar_groups) - len(shown), "group"),
    )


def _group(home: Home, contents: Contents, group: DuplicateGroup) -> Group:
    keeper = contents.by_path[group.keep]
    members = [Member(picture(home, keeper), "Reference image", image_size(keeper))]
    for path, reason in zip(group.reject, group.reasons, strict=True):
        item = contents.by_path[path]
        members.append(Member(picture(home, item), reason.capitalize(), image_size(item), similar_actions(item)))
    return Group(f"{keeper.name} and {format_count(len(group.reject), 'similar image')}", members, similar=True)


def most_similar_pairs(home: Home, contents: Contents) -> Markup:
    """Return the most similar pairs of images, however similar they are; empty before tagging."""
    found = contents.manifest.diversity
    pairs = [
        (picture(home, contents.by_path[pair.first]), picture(home, contents.by_path[pair.second]), pair.likeness)
        for pair in (found.pairs if found else [])
        if pair.first in contents.by_path and pair.second in contents.by_path
    ]
    return render("dataset/pairs.html", pairs=pairs) if pairs else Markup("")


def bucket_overview(home: Home, contents: Contents) -> Markup:
    """Return the aspect buckets: shape, what they crop of their images, and how full their batches are."""
    buckets, recipe = contents.bucketing.buckets, contents.bucketing.recipe
    if not buckets:
        return Markup("")
    hidden = buckets[MAX_BUCKETS:]
    images = sum(len(bucket.images) for bucket in hidden)
    return render(
        "dataset/buckets.html",
        hint=f"{_resolutions(contents)} {_batch_fill(buckets, recipe)}",
        buckets=[_bucket(home, contents, bucket, recipe) for bucket in buckets[:MAX_BUCKETS]],
        more=f"{format_count(len(hidden), 'more bucket')} with {format_count(images, 'image')}." if hidden else "",
    )


def _resolutions(contents: Contents) -> str:
    sizes = {image.size for image in contents.images.trained.images}
    if len(sizes) == 1:
        (width, height) = next(iter(sizes))
        return f"All images have {width} × {height} px, as the guide suggests."
    small, large = (pick(sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
    return (
        f"{len(sizes)} sizes, from {small[0]} × {small[1]} to {large[0]} × {large[1]} px; "
        "the guide suggests a single resolution."
    )


def _batch_fill(buckets: list[Bucket], recipe: Recipe) -> str:
    empty = sum(bucket.empty_slots for bucket in buckets)
    slots = sum(bucket.batches for bucket in buckets) * recipe.batch_size
    if not empty:
        return f"All batches of {recipe.batch_size} are full."
    return f"With batch size {recipe.batch_size}, {empty} of {slots} places per epoch stay empty ({empty / slots:.0%})."


def _bucket(home: Home, contents: Contents, bucket: Bucket, recipe: Recipe) -> BucketRow:
    width, height = bucket.size
    largest_crop = max(image.cropped for image in bucket.images)
    if largest_crop < NEGLIGIBLE_CROP:
        crop = "nothing cropped"
    else:
        crop = f"{'up to ' if len(bucket.images) > 1 else ''}{largest_crop:.0%} cropped"
    empty = f"last batch {bucket.empty_slots} short of {recipe.batch_size}"
    return BucketRow(
        width=width,
        height=height,
        lines=[format_count(len(bucket.images), "image"), crop, empty if bucket.empty_slots else "all batches full"],
        pictures=[
            _cropped(home, contents.by_path[placed.path], placed) for placed in bucket.images[:MAX_IMAGES_PER_BUCKET]
        ],
        rest=max(len(bucket.images) - MAX_IMAGES_PER_BUCKET, 0),
    )


def _cropped(home: Home, item: ImageItem, placed: PlacedImage) -> CroppedPicture:
    left, top, right, bottom = (f"{100 * share:.1f}%" for share in placed.frame)
    width, height = placed.size
    return CroppedPicture(
        picture(home, item),
        f"{item.name}: {width} × {height} px, {placed.cropped:.0%} cropped",
        width,
        height,
        f"{top} {right} {bottom} {left}",
    )
