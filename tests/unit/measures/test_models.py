"""The choice of the model whose features are compared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lora_studio.dataset.tagging.cache import FEATURES, TAGS, TagCache
from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.errors import InputError
from lora_studio.measures.models import cache_kind, feature_model, named_feature_model
from lora_studio.workspace.project import Home
from tests.support.tiny_taggers import save_tiny_wd
from tests.support.tiny_vision import save_tiny_vision

HASHES = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4)]


def tagged(home: Home, tagger: Path, count: int) -> None:
    """Put predictions of the first images into the cache of a tagger."""
    cache = TagCache.of(find_tagger(str(tagger), home=home), home)
    for sha256 in HASHES[:count]:
        cache.add(sha256, Prediction())
    cache.flush()


def test_default_is_the_tagger_of_the_images(home: Home, tmp_path: Path) -> None:
    tagger = save_tiny_wd(tmp_path / "wd")
    tagged(home, tagger, 2)
    found = feature_model("", HASHES, home)
    assert found.name == str(tagger)
    assert cache_kind(found) == TAGS


def test_thumbnails_where_most_images_are_untagged_or_the_tagger_is_gone_or_another(home: Home, tmp_path: Path) -> None:
    tagger = save_tiny_wd(tmp_path / "wd")
    assert feature_model("", HASHES, home).name == "thumbnails"
    tagged(home, tagger, 1)
    assert feature_model("", HASHES, home).name == "thumbnails"
    tagged(home, tagger, 4)
    save_tiny_wd(tagger, family="swinv2")
    assert feature_model("", HASHES, home).name == "thumbnails"
    (tagger / "model.safetensors").unlink()
    assert feature_model("", HASHES, home).name == "thumbnails"


def test_finds_a_named_model_in_the_models_folder_and_a_tagger(home: Home, tmp_path: Path) -> None:
    save_tiny_vision(home.models / "dino")
    found = feature_model("dino", HASHES, home)
    assert found.name == "dino"
    assert cache_kind(found) == FEATURES
    assert cache_kind(named_feature_model(str(save_tiny_wd(tmp_path / "wd")), home)) == TAGS


def test_another_weight_is_another_cache(tmp_path: Path) -> None:
    folder = save_tiny_vision(tmp_path / "dino")
    before = named_feature_model(str(folder), Home(tmp_path)).content_hash()
    (folder / "README.md").write_text("notes", "utf-8")
    assert named_feature_model(str(folder), Home(tmp_path)).content_hash() == before
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"0")
    assert named_feature_model(str(folder), Home(tmp_path)).content_hash() != before


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("owner/absent", "feature_model_missing"),
        ("nowhere", "feature_model_missing"),
        ("bert", "feature_model_kind"),
        ("empty", "feature_model_kind"),
        ("pickled", "feature_model_incomplete"),
    ],
)
def test_refuses_what_is_not_on_this_machine_or_of_another_kind(home: Home, name: str, code: str) -> None:
    for folder, model_type in (("bert", "bert"), ("pickled", "dinov2")):
        (home.models / folder).mkdir(parents=True)
        (home.models / folder / "config.json").write_text(json.dumps({"model_type": model_type}), "utf-8")
    (home.models / "pickled" / "pytorch_model.bin").touch()
    (home.models / "empty").mkdir()
    with pytest.raises(InputError) as error:
        feature_model(name, HASHES, home)
    assert error.value.code == code
