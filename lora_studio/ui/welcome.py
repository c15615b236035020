"""The start page: what the studio does, ways to begin, recent projects, and what this machine can train."""

from __future__ import annotations

import base64
import functools
import shutil
import time
from typing import NamedTuple

import gradio as gr
import psutil
from markupsafe import Markup

from lora_studio.device import find_gpu, unused_gpu_error
from lora_studio.planning.memory import estimate_vram_gib, fit_vram, fits
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.widgets.html import STATIC, html, pickable, render
from lora_studio.workspace.project import Home, Project

GIB = 2**30
DAY = 86_400.0  # s
MAX_RECENT = 6
MIN_FREE_GIB = 15  # a base model of 7 GB, its caches, and some runs
STEPS = (
    ("duplicates", "Curate", "It finds duplicates, also mirrored, resized and re-encoded ones, and flawed images."),
    ("tags", "Caption", "It tags the images, puts the trigger word first, and lets you review every caption."),
    ("curve", "Train", "It plans the run, shows the loss and samples live, and says when something goes wrong."),
    ("grid", "Test", "It draws the LoRA at every strength, and measures which strength to use."),
)


class Welcome(NamedTuple):
    """The components of the start page."""

    column: gr.Column
    example: gr.Button
    images: gr.Button
    plan: gr.Button
    upload: gr.UploadButton
    recent: gr.HTML
    machine: gr.HTML


def build_welcome(*, visible: bool) -> Welcome:
    """Create the components."""
    with gr.Column(visible=visible, elem_classes="welcome", elem_id="welcome") as column:
        html(render("app/welcome.html", steps=[(_picture(name), title, text) for name, title, text in STEPS]))
        with gr.Row(elem_classes="actions"):
            example = gr.Button(
                "Try it with the example set", variant="primary", min_width=220, elem_id="welcome-example"
            )
            images = gr.Button("Import my images", min_width=180)
            plan = gr.Button("Plan first", min_width=120)
            upload = gr.UploadButton(
                "Open an exported project",
                file_types=[".zip"],
                file_count="single",
                min_width=200,
                elem_id="welcome-import",
            )
        recent = pickable(elem_id="welcome-recent")
        machine = html(elem_id="welcome-machine")
    return Welcome(column, example, images, plan, upload, recent, machine)


@functools.cache
def _picture(name: str) -> str:
    data = (STATIC / "welcome" / f"{name}.webp").read_bytes()
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def recent_projects(projects: list[Project]) -> Markup | str:
    """Return buttons that open the projects, the one last worked on first; empty if there are none."""
    if not projects:
        return ""
    items = [(project.name, _age(time.time() - project.last_used)) for project in projects[:MAX_RECENT]]
    return render("app/recent.html", items=items, more=len(projects) - len(items))


def _age(seconds: float) -> str:
    days = int(seconds // DAY)
    if days < 1:
        return "today" if seconds > 3600 else "just now"
    return "yesterday" if days == 1 else f"{days} days ago"


def machine_card(home: Home) -> Markup:
    """Return what this computer can train: GPU, memory, disk, and the settings with which SDXL fits."""
    free = shutil.disk_usage(next(path for path in (home.path, *home.path.parents) if path.is_dir())).free / GIB
    ram = psutil.virtual_memory().total / GIB
    gpu = find_gpu()
    error = unused_gpu_error()
    if gpu is None:
        device, text = "no NVIDIA GPU", "The example set trains on the CPU in minutes. SDXL itself needs a GPU."
    elif error is not None:
        device, text = f"{gpu.name}, not usable", f"{error} {error.remedy}"
    else:
        device, text = f"{gpu.name}, {gpu.vram_gib:g} GiB", what_fits(gpu.vram_gib)
    facts = [f"GPU: {device}", f"RAM: {ram:.0f} GiB", f"Free disk space: {free:.0f} GiB"]
    if free < MIN_FREE_GIB:
        facts[-1] += f" (a base model and its runs need about {MIN_FREE_GIB})"
    return render("app/machine.html", facts=facts, text=text)


def what_fits(vram_gib: float) -> str:
    """Return the largest batch of SDXL that fits a GPU, and what saves memory for it."""
    recipe, savings = fit_vram(Recipe(), None, vram_gib)
    if not fits(recipe, None, vram_gib):
        least = estimate_vram_gib(recipe)
        return f"SDXL needs about {least:.1f} GiB even with all savings. The example set trains on any computer."
    changed = ", ".join(saving.setting.replace("_", " ") for saving in savings)
    how = f" Plan saves memory by {changed}." if changed else ""
    needed = f"batch {recipe.batch_size} at {recipe.resolution} px takes about {estimate_vram_gib(recipe):.1f} GiB"
    return f"SDXL fits: {needed}.{how}"
