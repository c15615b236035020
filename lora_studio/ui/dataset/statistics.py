"""Statistics: how often each tag is there, what stands beside one, how long captions are, what to hold out."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import gradio as gr
from markupsafe import Markup

from lora_studio.dataset.captions.statistics import SplitSuggestion, TagCount, count_caption_tokens
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.view import NAMES_SHOWN
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.formatting import format_count
from lora_studio.ui.widgets.html import Tile, Tone, card, empty_card, heading, html, pickable, tiles

TAGS_PER_PAGE = 25  # tags a page of the table
CO_OCCURRING_SHOWN = 10


class TagPick(StrEnum):
    """What a button of the tables asks for; what follows the colon is a tag, or a page's number."""

    TAG = "tag"
    PAGE = "tags"


class StatisticsPanel:
    """The right side of Statistics."""

    def __init__(self) -> None:
        with gr.Column(visible=False) as self.column:
            self.figures = html(elem_id="statistics-figures")
            self.table = pickable(elem_id="statistics-tags")
            self.co_occurrence = pickable(elem_id="statistics-co-occurrence")
            self.split = html(elem_id="statistics-split")
            self.page = gr.State(0)

    @property
    def outputs(self) -> list[Any]:
        """Everything that this panel changes."""
        return [self.column, self.figures, self.table, self.co_occurrence, self.split, self.page]

    def render(self, contents: Contents, chosen: str, page: int) -> Updates:
        """The figures; `chosen` is the tag whose company is shown (default: the trigger word, else the first)."""
        frequencies = contents.tag_table.frequencies
        if not frequencies:
            return {
                self.figures: empty_card("Figures of your captions will stand here", "Tag the images first."),
                self.table: "",
                self.co_occurrence: "",
                self.split: "",
            }
        tag = chosen or contents.trigger or frequencies[0].tag
        return {
            self.figures: caption_figures(contents, len(frequencies)),
            self.table: tag_table(frequencies, chosen, page),
            self.co_occurrence: co_occurrence_table(tag, contents.tag_table.cooccurring(tag)),
            self.split: split_card(contents.split_suggestion, len(contents.items)),
        }


def caption_figures(contents: Contents, distinct: int) -> Markup:
    """The captions in three figures."""
    captions = [item.caption for item in contents.items if item.caption]
    tokens = count_caption_tokens(captions)
    long = f"{tokens.too_long} longer than {tokens.limit}" if tokens.too_long else f"none longer than {tokens.limit}"
    single = sum(count.images == 1 for count in contents.tag_table.frequencies)
    return tiles(
        [
            Tile("Tags", f"{distinct:,}", f"{single:,} of them on one image only"),
            Tile(
                "Tags a caption",
                f"{sum(map(len, contents.tag_table.tags.values())) / max(len(contents.tag_table.tags), 1):.1f}",
                "on average",
            ),
            Tile(
                "Tokens",
                f"{tokens.least} to {tokens.most}",
                f"{tokens.mean:g} on average, {long}",
                Tone.WARNING if tokens.too_long else Tone.OK,
            ),
        ]
    )


def tag_table(frequencies: Sequence[TagCount], chosen: str, page: int) -> Markup:
    """One page of tags with a bar each; a click shows the images that have it."""
    pages = (len(frequencies) - 1) // TAGS_PER_PAGE + 1
    page = min(max(page, 0), pages - 1)
    shown = frequencies[page * TAGS_PER_PAGE : (page + 1) * TAGS_PER_PAGE]
    buttons = [
        Markup('<button type="button" class="act" data-pick="{}:{}">{}</button>').format(
            TagPick.PAGE.value, number, text
        )
        for number, text in ((page - 1, "More frequent"), (page + 1, "Less frequent"))
        if 0 <= number < pages
    ]
    return Markup('{}{}<div class="pager"><span class="hint">{}</span>{}</div>').format(
        heading("Tag frequency", "Click a tag to see the images that have it on the left, and what stands beside it."),
        _bars(shown, chosen),
        f"{page * TAGS_PER_PAGE + 1}–{page * TAGS_PER_PAGE + len(shown)} of {format_count(len(frequencies), 'tag')}",
        Markup("").join(buttons),
    )


def co_occurrence_table(tag: str, together: Sequence[TagCount]) -> Markup:
    """The tags that most often stand beside one."""
    title = heading(f"Beside {tag}", "Share of the images that have it. What is always there, the LoRA learns with it.")
    if not together:
        return Markup('{}<p class="hint">No other tag stands beside it.</p>').format(title)
    return Markup("{}{}").format(title, _bars(together[:CO_OCCURRING_SHOWN], ""))


def _bars(counts: Sequence[TagCount], chosen: str) -> Markup:
    rows = Markup("").join(
        Markup(
            '<tr><th scope="row"><button type="button" class="pick" data-pick="{0}:{1}" aria-pressed="{2}">{1}</button>'
            '</th><td class="frequency"><div style="width: {3:.1f}%"></div></td><td class="keep">{4}</td>'
            '<td class="keep">{5}</td></tr>'
        ).format(
            TagPick.TAG.value,
            count.tag,
            str(count.tag.casefold() == chosen.casefold()).lower(),
            100 * count.share,
            f"{count.images:,}",
            f"{count.share:.0%}",
        )
        for count in counts
    )
    return Markup(
        '<div class="table-scroll bars"><table><thead><tr><th scope="col">Tag</th><th scope="col"></th>'
        '<th scope="col">Images</th><th scope="col">Share</th></tr></thead><tbody>{}</tbody></table></div>'
    ).format(rows)


def split_card(split: SplitSuggestion, images: int) -> Markup:
    """What to hold out of training."""
    if not split.held_out:
        return card("Hold none of them out", split.why)
    names = [path.name for path in split.held_out[:NAMES_SHOWN]]
    more = f" and {len(split.held_out) - NAMES_SHOWN} more" if len(split.held_out) > NAMES_SHOWN else ""
    return card(
        f"Hold out {len(split.held_out):,} of {format_count(images, 'image')}",
        f"{split.why} Copies of one picture stay on one side: {', '.join(names)}{more}.",
        f"A held-out share of {split.share:g} in Train does that.",
    )
