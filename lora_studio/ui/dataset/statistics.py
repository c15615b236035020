"""The Statistics section: tag frequencies, tags that occur together, lengths of captions, and a validation split."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from markupsafe import Markup

from lora_studio.dataset.captions.statistics import TagCount, count_caption_tokens
from lora_studio.dataset.validation_split import SplitSuggestion
from lora_studio.plurals import format_count
from lora_studio.ui.dataset.caption_panels import StatisticsPanel
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.state import DatasetState
from lora_studio.ui.dataset.view import MAX_NAMES, Action
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import Tile, Tone, card, empty_card, render, tiles

TAGS_PER_PAGE = 25
MAX_COOCCURRING_TAGS = 10


class TagPick(StrEnum):
    """Verbs of the tables' buttons. The subject after the colon is a tag, or the number of a page."""

    TAG = "tag"
    PAGE = "tags"


def render_statistics(panel: StatisticsPanel, state: DatasetState) -> Updates:
    """Show the statistics, with the tags that occur with that of the filter (default: the trigger word)."""
    contents, selected = state.contents, state.selection.tag
    frequencies = contents.captions.tag_table.frequencies
    if not frequencies:
        placeholder = empty_card("Statistics of your captions will appear here", "Tag the images first.")
        return {panel.figures: placeholder, panel.table: "", panel.co_occurrence: "", panel.split: ""}
    tag = selected or contents.trigger or frequencies[0].tag
    return {
        panel.figures: caption_tiles(contents, len(frequencies)),
        panel.table: tag_table(frequencies, selected, state.place.statistics_page),
        panel.co_occurrence: co_occurrence_table(tag, contents.captions.tag_table.cooccurring(tag)),
        panel.split: split_card(contents.images.split, contents.images.trained.total),
    }


def caption_tiles(contents: Contents, distinct_tags: int) -> Markup:
    """Return tiles with the number of tags and the lengths of captions."""
    captions = [item.caption for item in contents.items if item.caption]
    tokens = count_caption_tokens(captions)
    long = f"{tokens.too_long} longer than {tokens.limit}" if tokens.too_long else f"none longer than {tokens.limit}"
    single = sum(count.images == 1 for count in contents.captions.tag_table.frequencies)
    tag_lists = contents.captions.tag_table.tags.values()
    return tiles(
        [
            Tile("Tags", f"{distinct_tags:,}", f"{single:,} of them on a single image"),
            Tile("Tags per caption", f"{sum(map(len, tag_lists)) / max(len(tag_lists), 1):.1f}", "on average"),
            Tile(
                "Tokens per caption",
                f"{tokens.least} to {tokens.most}",
                f"{tokens.mean:g} on average, {long}",
                Tone.WARNING if tokens.too_long else Tone.OK,
            ),
        ]
    )


def tag_table(frequencies: Sequence[TagCount], selected: str, page: int) -> Markup:
    """Return one page of the tag frequencies; a click on a tag filters the images by it."""
    pages = (len(frequencies) - 1) // TAGS_PER_PAGE + 1
    page = min(max(page, 0), pages - 1)
    first = page * TAGS_PER_PAGE
    shown = frequencies[first : first + TAGS_PER_PAGE]
    neighbours = [(page - 1, "More frequent"), (page + 1, "Less frequent")]
    return render(
        "dataset/tag_table.html",
        title="Tag frequency",
        hint="Click a tag to see its images, and the tags that occur with it.",
        tags=shown,
        selected=selected.casefold(),
        empty="",
        range=f"{first + 1}–{first + len(shown)} of {format_count(len(frequencies), 'tag')}",
        pager=[Action(f"{TagPick.PAGE}:{number}", text) for number, text in neighbours if 0 <= number < pages],
    )


def co_occurrence_table(tag: str, cooccurring: Sequence[TagCount]) -> Markup:
    """Return the tags that occur most often with a tag."""
    return render(
        "dataset/tag_table.html",
        title=f"Tags that occur with {tag}",
        hint="Share of its images. The LoRA cannot tell tags apart that always occur together.",
        tags=cooccurring[:MAX_COOCCURRING_TAGS],
        selected="",
        empty="No other tag occurs with it.",
        range="",
        pager=[],
    )


def split_card(split: SplitSuggestion, images: int) -> Markup:
    """Return the suggested validation split."""
    if not split.held_out:
        return card("No validation split needed", split.why)
    names = [path.name for path in split.held_out[:MAX_NAMES]]
    more = f" and {len(split.held_out) - MAX_NAMES} more" if len(split.held_out) > MAX_NAMES else ""
    return card(
        f"Validate on {len(split.held_out):,} of {format_count(images, 'image')}",
        f"{split.why} Duplicates stay on the same side of the split: {', '.join(names)}{more}.",
        f"Set the validation split in Train to {split.share:g}.",
    )
