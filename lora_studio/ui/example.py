"""The example project: real images with planted flaws on the embedded small model, for a first walk."""

from __future__ import annotations

from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.example import EXAMPLE, example_project_info
from lora_studio.workspace.project import Home, Project

EXAMPLE_NAME = "inkstamp"


def create_example(home: Home) -> Project:
    """A new project with the example images, named after the set; raises StudioError for what the disk refuses."""
    project = home.create_project(free_name(home, EXAMPLE_NAME), example_project_info())
    import_paths([EXAMPLE], project.images_dir)
    return project


def ensure_example(home: Home) -> Project:
    """The example project, made if there is none."""
    known = {project.name: project for project in home.projects()}
    return known.get(EXAMPLE_NAME) or create_example(home)


def free_name(home: Home, name: str) -> str:
    """`name`, or `name 2`, `name 3`... while it is taken."""
    taken = {project.name.lower() for project in home.projects()}
    number, candidate = 1, name
    while candidate.lower() in taken:
        number += 1
        candidate = f"{name} {number}"
    return candidate
