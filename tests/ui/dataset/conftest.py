"""One interface and home per module, in which each test of the Dataset tab has a project of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lora_studio.ui.dataset.tab import DatasetTab
from lora_studio.workspace.project import Home, Project, ProjectInfo
from tests.support.captioned_images import TRIGGER, add_captioned_images
from tests.support.interface import Interface


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("studio") / "home")


@pytest.fixture(scope="module")
def interface(home: Home) -> Iterator[Interface]:
    built = Interface(home)
    yield built
    built.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def original(home: Home) -> Project:
    return add_captioned_images(home.create_project("original", ProjectInfo(trigger_word=TRIGGER)))


@pytest.fixture
def project(home: Home, interface: Interface, original: Project) -> Project:
    """A copy of that project, opened in the tab, in Review."""
    project = home.duplicate_project(original.name, f"ink {len(home.projects())}")
    interface.open_project(project.name)
    interface.call(DatasetTab.section_changed, dataset_section="Review")
    return project
