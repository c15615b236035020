"""The plan of a project, from its dataset or an expected number of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_studio.dataset.images.sets import project_images
from lora_studio.planning.plan import Plan, plan
from lora_studio.workspace.project import Project, ProjectInfo

EXPECTED_IMAGES = 20  # while the dataset is empty and no number was given


def plan_project(
    project: Project,
    info: ProjectInfo,
    *,
    expected_images: int = EXPECTED_IMAGES,
    vram_gib: float | None = None,
    hours: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    regularization: Path | None = None,
) -> Plan:
    """Plan a run on the project's images, or on `expected_images` while there are none.

    `overrides` are settings that the plan must use. Raises InputError if they cannot work.
    """
    return plan(
        project.dataset_dir if project_images(project) else expected_images,
        kind=info.kind,
        base=info.base,
        vram_gib=vram_gib,
        trigger_word=info.trigger_word,
        hours=hours,
        overrides=overrides,
        regularization=regularization,
    )
