"""BLIP captioners, on a tiny model in the files that real ones have."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.dataset.tagging.blip import BlipTagger
from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.workspace.project import Home
from tests.support.tiny_taggers import (
    WORDS,
    coloured_images,
    descriptions,
    save_tiny_blip,
)


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.mark.parametrize("older", [False, True])
def test_captions_with_words_of_its_vocabulary(tmp_path: Path, blip_folder: Path, older: bool) -> None:
    folder = blip_folder
    if older:  # the files in Salesforce's repositories
        from transformers import BlipImageProcessor

        folder = save_tiny_blip(tmp_path)
        (folder / "processor_config.json").unlink()
        BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        assert (folder / "preprocessor_config.json").is_file()
    tagger = find_tagger(str(folder), home=Home(folder)).load()
    assert isinstance(tagger, BlipTagger)
    predictions = tagger.predict([tagger.preprocess(image) for image in coloured_images()])
    assert [prediction.features.shape for prediction in predictions] == [(16,)] * 3
    described = descriptions(tagger, coloured_images())
    assert len(described) == 3
    for description in described:
        assert description.tags == ()
        assert description.caption
        assert set(description.caption.split()) <= set(WORDS)
    assert [descriptions(tagger, [image])[0] for image in coloured_images()] == described
