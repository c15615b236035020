"""One image of a test, large: its neighbours in the grid, a slider to compare it with another, and its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from lora_studio.models.png_info import read_parameters
from lora_studio.sampling.cells import EMPTY_PROMPT, Arrangement, CellKey, base_label, strength_label
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.widgets.html import render
from lora_studio.ui.widgets.thumbnails import thumbnail_url_or_empty
from lora_studio.workspace.project import Home

LARGE_SIZE = 1024  # px
CLOSE, STAR, PIN = "close", "star:", "pin:"


class Neighbour(NamedTuple):
    """A drawn cell next to the shown one: its file name, and the key and the label of its button."""

    name: str
    key: str
    label: str


def lightbox(view: SweepView, home: Home, arrangement: Arrangement, name: str, pinned: str, download: str) -> Markup:
    """Return the large image `name`, beside which `pinned` is compared; empty if `name` is empty.

    Without a pinned image it is compared with strength 0. `download` is the path of a copy to download.
    """
    if not name:
        return Markup("")
    key = view.drawn_cell(name)
    other = _compared(view, key, pinned)
    return render(
        "sweep/lightbox.html",
        name=name,
        url=thumbnail_url_or_empty(home, view.path(key), LARGE_SIZE),
        prompt=key.prompt,
        label=_short(key),
        other_url=thumbnail_url_or_empty(home, view.path(other), LARGE_SIZE) if other else "",
        other_label=_short(other) if other else "",
        facts=_facts(view, key),
        neighbours=_neighbours(view, arrangement, key),
        is_starred=name in view.starred,
        is_pinned=name == pinned,
        star=f"{STAR}{name}",
        pin=f"{PIN}{name}",
        close=CLOSE,
        download=f"gradio_api/file={quote(download)}" if download else "",
        parameters=read_parameters(view.path(key)) or "none",
    )


def _facts(view: SweepView, key: CellKey) -> list[tuple[str, str]]:
    loras = [f"{lora.file.name} ({_strengths(lora.unet, lora.text_encoder)})" for lora in view.plan.applied(key)]
    return [
        ("Prompt", key.prompt or EMPTY_PROMPT),
        ("Strength", strength_label(key.strength)),
        ("LoRA", ", ".join(loras) or "none"),
        ("Base", base_label(key.base)),
        ("Seed", str(key.seed)),
        ("Sampler", f"{view.job.sampler}, {view.job.steps} steps, CFG {view.job.guidance:g}"),
        ("Negative prompt", view.plan.negative_prompt(key.base) or "none"),
    ]


def _strengths(unet: float, text_encoder: float) -> str:
    return f"{unet:g}" if unet == text_encoder else f"UNet {unet:g}, text encoders {text_encoder:g}"


def _short(key: CellKey) -> str:
    return f"strength {strength_label(key.strength)}, seed {key.seed}"


def _compared(view: SweepView, key: CellKey, pinned: str) -> CellKey | None:
    """Return the cell to compare with: the pinned one, else strength 0 of the same prompt, seed and base."""
    if pinned in view.drawn and pinned != view.file_name(key):
        return view.drawn_cell(pinned)
    bare = CellKey(key.base, 0, 0.0, key.prompt, key.seed)
    exists = key.lora and bare in view.plan.cells and view.file_name(bare) in view.drawn
    return bare if exists else None


def _neighbours(view: SweepView, arrangement: Arrangement, key: CellKey) -> list[Neighbour]:
    """Return the next drawn cells in the four directions of the shown page."""
    table = view.plan.table(arrangement)
    place = next(((row, column) for row, keys in enumerate(table) for column, k in enumerate(keys) if k == key), None)
    if place is None:
        return []
    row, column = place
    across, down = table[row], [keys[column] for keys in table]
    directions: list[tuple[str, str, Sequence[CellKey]]] = [
        ("ArrowLeft", "‹ Left", across[:column][::-1]),
        ("ArrowRight", "Right ›", across[column + 1 :]),
        ("ArrowUp", "Up", down[:row][::-1]),
        ("ArrowDown", "Down", down[row + 1 :]),
    ]
    found = []
    for arrow, label, keys in directions:
        names = [name for other in keys if (name := view.file_name(other)) in view.drawn and other != key]
        if names:
            found.append(Neighbour(names[0], arrow, label))
    return found
