"""Captioners of transformers, on tiny models in the files that real ones have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_studio.dataset.tagging.catalogue import INDEX_FILE, TaggerFiles, find_tagger, weight_files
from lora_studio.dataset.tagging.image_text import CHAT_PROMPT, MAX_SIDE, ImageTextCaptioner
from lora_studio.errors import InputError
from lora_studio.workspace.project import Home
from tests.support.tiny_captioners import (
    LIST_TEMPLATE,
    TEXT_TEMPLATE,
    WORDS,
    save_tiny_florence,
    save_tiny_llava,
    save_tiny_qwen,
)
from tests.support.tiny_taggers import coloured_images, descriptions

MODELS: dict[str, Callable[[Path], Path]] = {
    "florence": save_tiny_florence,
    "qwen": save_tiny_qwen,
    "llava": save_tiny_llava,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(tmp_path_factory.mktemp(name)) for name, save in MODELS.items()}


def files_of(folder: Path, prompt: str = "describe this", tokens: int = 12) -> TaggerFiles:
    return find_tagger(str(folder), home=Home(folder)).with_prompt(prompt, tokens)


def load(folder: Path, prompt: str = "describe this", tokens: int = 12) -> ImageTextCaptioner:
    tagger = files_of(folder, prompt, tokens).load(on_cpu=True)
    assert isinstance(tagger, ImageTextCaptioner)
    return tagger


@pytest.mark.parametrize("model", MODELS)
def test_captions_have_new_words_only_and_do_not_depend_on_the_batch(folders: dict[str, Path], model: str) -> None:
    tagger = load(folders[model])
    together = [description.caption for description in descriptions(tagger, coloured_images())]
    assert [descriptions(tagger, [image])[0].caption for image in coloured_images()] == together
    for caption in together:
        assert set(caption.split()) <= {*WORDS, "user", "assistant"}
        assert not caption.startswith("user : describe this")
        assert len(caption.split()) <= 12
    assert any(together)


@pytest.mark.parametrize("template", [LIST_TEMPLATE, TEXT_TEMPLATE])
def test_the_prompt_is_the_users_message_with_the_image(tmp_path: Path, template: str) -> None:
    folder = save_tiny_llava(tmp_path, template)
    text = load(folder, "describe the cat").text
    assert text.count("<image>") == 1
    assert "describe the cat" in text
    assert text.index("<image>") < text.index("describe")
    assert text.startswith("user :")
    assert text.strip().endswith("assistant :")
    assert CHAT_PROMPT in load(folder, "").text


def test_florence_gets_its_task_without_a_prompt(folders: dict[str, Path]) -> None:
    assert load(folders["florence"], "").text == "<DETAILED_CAPTION>"
    assert load(folders["florence"], "<CAPTION>").text == "<CAPTION>"


def test_large_images_are_reduced(folders: dict[str, Path]) -> None:
    tagger = load(folders["llava"])
    assert tagger.preprocess(Image.new("RGB", (4000, 1000))).size == (MAX_SIDE, MAX_SIDE // 4)
    assert tagger.preprocess(Image.new("RGB", (60, 40))).size == (60, 40)


def test_another_prompt_and_another_shard_are_another_cache(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["qwen"]
    assert len(weight_files(folder)) > 1
    keys = {
        files_of(folder).content_hash(),
        files_of(folder, "a").content_hash(),
        files_of(folder, "a", 99).content_hash(),
    }
    assert len(keys) == 3
    copy = save_tiny_qwen(tmp_path)
    assert files_of(copy).content_hash() == files_of(folder).content_hash()
    shard = copy / weight_files(copy)[0]
    save_file({name: value + 1 for name, value in load_file(shard).items()}, shard, metadata={"format": "pt"})
    assert files_of(copy).content_hash() != files_of(folder).content_hash()


def test_a_missing_shard_or_index_entry_is_an_error(tmp_path: Path) -> None:
    folder = save_tiny_qwen(tmp_path)
    (folder / weight_files(folder)[-1]).unlink()
    with pytest.raises(InputError) as caught:
        files_of(folder)
    assert caught.value.code == "tagger_incomplete"
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "../../other.safetensors"}}), "utf-8")
    with pytest.raises(InputError) as caught:
        files_of(folder)
    assert caught.value.code == "tagger_broken"


def test_weights_under_other_names_are_an_error(tmp_path: Path) -> None:
    """As those of a repository that needs its own code: transformers would leave the model random."""
    folder = save_tiny_florence(tmp_path)
    file = folder / "model.safetensors"
    save_file({f"old.{name}": value for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        load(folder)
    assert caught.value.code == "tagger_broken"


@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_model_is_not_run(tmp_path: Path, known: bool) -> None:
    folder, ran = save_tiny_florence(tmp_path / "model"), tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: pass\nclass Model: pass\n", "utf-8")
    classes = {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model", "AutoProcessor": "code.Model"}
    for file in (folder / "config.json", folder / "processor_config.json"):
        content = json.loads(file.read_text("utf-8")) | {"auto_map": classes}
        if not known and file.name == "config.json":
            content["model_type"] = "florence_of_its_own"
        file.write_text(json.dumps(content), "utf-8")
    if known:
        assert descriptions(load(folder), coloured_images())
    else:
        with pytest.raises(InputError, match="needs code of its own") as caught:
            load(folder)
        assert caught.value.code == "tagger_broken"
    assert not ran.exists()


def test_a_model_that_only_compares_images_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "clip", "architectures": ["CLIPModel"], "vision_config": {}, "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(InputError) as caught:
        files_of(tmp_path)
    assert caught.value.code == "tagger_layout"
