"""What the bare base drew before a training, shown by Plan and, to compare with, by Test."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.errors import InputError
from lora_studio.models.catalogue import find_base
from lora_studio.sampling.cells import base_label
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.widgets.html import render
from lora_studio.ui.widgets.thumbnails import thumbnail_url_or_empty
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home, Project

IMAGE_SIZE = 384  # px
EMPTY_PROMPT = "(empty prompt)"


class FirstImage(NamedTuple):
    """An image of the bare base; without a `url` it is not drawn yet."""

    prompt: str
    url: str
    has_trigger: bool


def latest_first_test(project: Project) -> JobFolder | None:
    """Return the test of the bare base that was started last; None if there was none."""
    return next(reversed(project.first_tests()), None)


def load_first_test(project: Project) -> SweepView | None:
    """Return the last test of the project's base, or a running one; None without one whose job can be read."""
    wanted = _same_base(project.info().base)
    for folder in reversed(project.first_tests()):
        with suppress(InputError):
            view = SweepView.load(folder)
            if view.is_active or wanted in map(_same_base, view.job.bases):
                return view
    return None


def _same_base(base: str) -> str:
    """Return the catalogue's name of a base, so that its aliases are equal; else the text itself."""
    known = find_base(base)
    return known.name if known else base.strip()


def before_training(view: SweepView | None, home: Home) -> Markup:
    """Return the images of the bare base; empty without any."""
    if view is None or not (view.drawn or view.is_active):
        return Markup("")
    word = view.job.trigger_word
    images = [
        FirstImage(
            key.prompt or EMPTY_PROMPT,
            thumbnail_url_or_empty(home, view.path(key), IMAGE_SIZE) if view.file_name(key) in view.drawn else "",
            bool(word) and word in key.prompt,
        )
        for key in view.plan.cells
    ]
    base = ", ".join(base_label(base) for base in view.plan.bases)
    return render("first_test.html", images=images, word=word, base=base, seed=view.plan.seeds[0], steps=view.job.steps)
