"""How varied a dataset is, which images are much alike, and how they fall into buckets, as the page shows it."""

from __future__ import annotations

from markupsafe import Markup

from lora_studio.dataset.buckets import Bucket, PlacedImage
from lora_studio.dataset.duplicates.find import DuplicateGroup
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.dataset.contents import Contents, ImageItem
from lora_studio.ui.dataset.view import Pick, action, group_member, thumbnail
from lora_studio.ui.widgets.formatting import format_count
from lora_studio.ui.widgets.html import Tone, card, heading
from lora_studio.workspace.project import Home

GROUPS_SHOWN = 12
BUCKETS_SHOWN = 12
SHOWN_IN_BUCKET = 6
MIN_DIVERSITY = 45  # of 100; what is less is said with an amber edge


def variety_card(contents: Contents) -> Markup:
    """The figure of diversity, in words; what is needed for it if there is none."""
    found = contents.manifest.diversity
    if found is None:
        text = "Tag the images: what the tagger sees tells which are much alike, in the same pass."
        return card("Diversity is known after tagging", text) if contents.items else Markup("")
    more = "Similar poses waste training steps." if contents.similar_groups else ""
    tone = Tone.OK if found.figure > MIN_DIVERSITY else Tone.WARNING
    return card(
        f"Diversity {found.figure} of 100", f"Over {format_count(found.images, 'image')}: {found.words}.", more, tone
    )


def similar_groups(home: Home, contents: Contents) -> Markup:
    """Groups of similar images side by side; nothing of them is proposed to go."""
    if not contents.similar_groups:
        return Markup("")
    groups = Markup("").join(_group(home, contents, group) for group in contents.similar_groups[:GROUPS_SHOWN])
    rest = len(contents.similar_groups) - GROUPS_SHOWN
    more = Markup('<p class="hint">{} more; they follow when some of these are settled.</p>').format(
        format_count(max(rest, 0), "group")
    )
    return Markup('{}<div class="groups">{}</div>{}').format(
        heading(
            "Similar",
            "Much the same pose or composition, by what the tagger sees. Yours to judge: none is set aside by itself.",
        ),
        groups,
        more if rest > 0 else "",
    )


def _group(home: Home, contents: Contents, group: DuplicateGroup) -> Markup:
    keeper = contents.by_path[group.keep]
    members = [
        group_member(home, keeper, Markup("The largest of them" if len(group.reject) > 1 else "Its like"), Markup(""))
    ]
    for path, reason in zip(group.reject, group.reasons, strict=True):
        item = contents.by_path[path]
        buttons = Markup("").join(
            [
                action(
                    Pick.SET_ASIDE, item.id, "Set aside", "Moved out of the dataset; it can be put back.", key="Delete"
                ),
                action(Pick.KEEP, item.id, "Keep both", "It stays, and is not shown here again.", key="k"),
            ]
        )
        members.append(group_member(home, item, Markup("{}").format(reason.capitalize()), buttons))
    return Markup('<div class="group similar" role="group" aria-label="{}">{}</div>').format(
        f"{keeper.name} and {format_count(len(group.reject), 'similar image')}", Markup("").join(members)
    )


def most_similar_pairs(home: Home, contents: Contents) -> Markup:
    """The ten most alike pairs, however alike they are."""
    found = contents.manifest.diversity
    pairs = [
        (contents.by_path[pair.first], contents.by_path[pair.second], pair.likeness)
        for pair in (found.pairs if found else [])
        if pair.first in contents.by_path and pair.second in contents.by_path
    ]
    if not pairs:
        return Markup("")
    rows = Markup("").join(
        Markup('<div class="pair">{}{}<span class="hint">{:.0%}</span></div>').format(
            _opener(home, first), _opener(home, second), likeness
        )
        for first, second, likeness in pairs
    )
    return Markup('{}<div class="pairs">{}</div>').format(
        heading(
            "The most alike",
            "Of all pairs of images. 100% is the same picture; 0% is no more than any two here have in common.",
        ),
        rows,
    )


def _opener(home: Home, item: ImageItem) -> Markup:
    return Markup('<button type="button" class="shot" data-pick="{}:{}" title="{}">{}</button>').format(
        Pick.SHOW.value, item.id, f"Open {item.name}", thumbnail(home, item)
    )


def bucket_overview(home: Home, contents: Contents) -> Markup:
    """Each bucket as a shape with its images, framed where they are cropped, and what the batch size leaves empty."""
    buckets, recipe = contents.buckets, contents.recipe
    if not buckets:
        return Markup("")
    shown = Markup("").join(_bucket(home, contents, bucket, recipe) for bucket in buckets[:BUCKETS_SHOWN])
    rest = buckets[BUCKETS_SHOWN:]
    more = Markup('<p class="hint">{} more with {}.</p>').format(
        format_count(len(rest), "bucket"), format_count(sum(len(bucket.images) for bucket in rest), "image")
    )
    return Markup('{}<div class="buckets">{}</div>{}').format(
        heading("Buckets", _sizes(contents) + _waste(buckets, recipe)), shown, more if rest else ""
    )


def _sizes(contents: Contents) -> str:
    sizes = contents.sizes
    if len(sizes) == 1:
        (width, height) = next(iter(sizes))
        return f"All images have {width} × {height} px, as the guide likes it. "
    small, large = (pick(sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
    return (
        f"{len(sizes)} sizes, from {small[0]} × {small[1]} to {large[0]} × {large[1]} px; "
        "the guide likes one resolution. "
    )


def _waste(buckets: list[Bucket], recipe: Recipe) -> str:
    empty = sum(bucket.empty_slots for bucket in buckets)
    places = sum(bucket.batches for bucket in buckets) * recipe.batch_size
    if not empty:
        return f"Batches of {recipe.batch_size} are all full."
    return (
        f"With batch size {recipe.batch_size}, {empty} of {places} places an epoch stay empty ({empty / places:.0%})."
    )


def _bucket(home: Home, contents: Contents, bucket: Bucket, recipe: Recipe) -> Markup:
    width, height = bucket.size
    cropped = [image.cropped for image in bucket.images]
    if max(cropped) < 0.005:
        cut = "nothing cropped"
    else:
        cut = f"up to {max(cropped):.0%} cropped" if len(cropped) > 1 else f"{max(cropped):.0%} cropped"
    full = (
        "all batches full"
        if not bucket.empty_slots
        else f"its last batch lacks {bucket.empty_slots} of {recipe.batch_size}"
    )
    pictures = Markup("").join(
        _framed(home, contents.by_path[one.path], one) for one in bucket.images[:SHOWN_IN_BUCKET]
    )
    rest = len(bucket.images) - SHOWN_IN_BUCKET
    return Markup(
        '<div class="bucket"><div class="shape"><span style="aspect-ratio: {} / {}; {}: 100%"></span></div>'
        '<div class="words"><strong>{} × {}</strong><p class="hint">{}<br>{}<br>{}</p></div>'
        '<div class="framed">{}{}</div></div>'
    ).format(
        width,
        height,
        "width" if width >= height else "height",
        width,
        height,
        format_count(len(bucket.images), "image"),
        cut,
        full,
        pictures,
        Markup('<span class="hint">+ {:,}</span>').format(rest) if rest > 0 else "",
    )


def _framed(home: Home, item: ImageItem, one: PlacedImage) -> Markup:
    """A thumbnail with a frame around what the bucket keeps of it."""
    left, top, right, bottom = (f"{100 * share:.1f}%" for share in one.frame)
    width, height = one.size
    return Markup(
        '<button type="button" class="cut" data-pick="{}:{}" title="{}" style="aspect-ratio: {} / {}">{}'
        '<i style="inset: {} {} {} {}"></i></button>'
    ).format(
        Pick.SHOW.value,
        item.id,
        f"{item.name}: {width} × {height} px, {one.cropped:.0%} cropped",
        width,
        height,
        thumbnail(home, item),
        top,
        right,
        bottom,
        left,
    )
