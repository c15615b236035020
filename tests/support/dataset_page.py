"""What Dataset shows of a project, and the captions that are saved in it."""

from __future__ import annotations

import re

from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.images.decode import find_images
from lora_studio.workspace.project import Project


def captions(project: Project) -> list[str | None]:
    """Return the caption of each image, in their order."""
    return [read_caption(image) for image in find_images(project.dataset_dir)]


def shown(grid: str) -> list[str]:
    """Return the names of the images in a grid."""
    return [title.split("\n")[0] for title in re.findall(r'aria-pressed="\w+" title="([^"]+)"', grid)]
