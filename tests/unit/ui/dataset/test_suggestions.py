"""Tags are suggested from the dataset and from a tagger's predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_studio.dataset.tagging.cache import TagCache
from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.dataset.tagging.labels import GENERAL
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.suggestions import Suggestion, TagSuggester
from lora_studio.workspace.project import Home, Project, ProjectInfo
from tests.support.captioned_images import TRIGGER, add_captioned_images
from tests.support.tiny_taggers import save_tiny_wd


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("studio") / "home")


@pytest.fixture(scope="module")
def original(home: Home) -> Project:
    return add_captioned_images(home.create_project("original", ProjectInfo(trigger_word=TRIGGER)))


def test_suggests_tags_of_the_dataset(original: Project, home: Home) -> None:
    contents = Contents.of(original)
    image = contents.by_path[original.images_dir / "key.png"]
    suggester = TagSuggester(home)
    assert [word.tag for word in suggester.suggest(contents, "i", image)] == []
    assert suggester.suggest(contents, "I", None)[0] == Suggestion("ink", 3)
    assert [word.tag for word in suggester.suggest(contents, "u", image)] == ["umbrella"]
    assert suggester.suggest(contents, " ", image) == []


def test_suggests_tags_of_the_tagger_and_returns_its_confidences(original: Project, tmp_path: Path) -> None:
    contents = Contents.of(original)
    image = contents.by_path[original.images_dir / "key.png"]
    assert image.info
    home = Home(tmp_path / "home")
    suggester = TagSuggester(home)
    assert not suggester.confidences(image)
    cache = TagCache.of(find_tagger(str(save_tiny_wd(tmp_path / "wd")), home=home), home)
    number, label = next((n, label) for n, label in enumerate(cache.labels) if label.category == GENERAL)
    sight = Prediction(np.array([number], np.uint16), np.array([0.5], np.float16), "", np.ones(2, np.float16))
    cache.add(image.info.sha256, sight)
    cache.flush()
    assert suggester.confidences(image) == {label.name: 0.5}
    assert Suggestion(label.name, 0) in suggester.suggest(contents, label.name, image)
