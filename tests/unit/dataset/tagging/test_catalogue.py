"""Finding and loading taggers, on tiny models in the files that real ones come in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from lora_studio.dataset.tagging import catalogue, labels
from lora_studio.dataset.tagging.blip import BlipTagger
from lora_studio.dataset.tagging.catalogue import CATALOGUE, fetch_tagger, find_tagger, read_layout
from lora_studio.dataset.tagging.interface import Description, Prediction, Tag
from lora_studio.dataset.tagging.labels import Label, caption_tag, read_labels
from lora_studio.dataset.tagging.selection import TagSelection, describe, merged
from lora_studio.dataset.tagging.wd import WdTagger
from lora_studio.errors import InputError
from lora_studio.workspace.project import Home
from tests.support.tiny_taggers import FAMILIES, WD_SIZE, WD_TAGS, WORDS, descriptions, save_tiny_blip, save_tiny_wd

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def wd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_wd(tmp_path_factory.mktemp("wd"))


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("blip"))


def pictures() -> list[Image.Image]:
    """Unlike colours and shapes, wide, tall and square."""
    images = []
    for size, colour in (((90, 40), "red"), ((30, 70), "blue"), ((50, 50), "green")):
        image = Image.new("RGB", size, colour)
        ImageDraw.Draw(image).ellipse((5, 5, 25, 35), fill="yellow")
        images.append(image)
    return images


def by_hand(folder: Path, image: Image.Image) -> np.ndarray:
    """Probabilities after the series' published preprocessing: white square, bicubic, mean and deviation 0.5, BGR."""
    image_size = max(image.size)
    square = Image.new("RGB", (image_size, image_size), (255, 255, 255))
    square.paste(image, ((image_size - image.width) // 2, (image_size - image.height) // 2))
    rgb = np.asarray(square.resize((WD_SIZE, WD_SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    bgr = torch.from_numpy(((rgb - 0.5) / 0.5)[:, :, ::-1].transpose(2, 0, 1).copy())
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        return torch.sigmoid(model(bgr[None]))[0].numpy()


def test_wd_preprocesses_as_the_series_does(wd_folder: Path) -> None:
    tagger = WdTagger.load(wd_folder, name="tiny")
    got = tagger.forward([tagger.preprocess(image) for image in pictures()])[1].numpy()
    expected = np.stack([by_hand(wd_folder, image) for image in pictures()])
    assert np.abs(got - expected).max() < 1e-5
    assert np.ptp(expected, axis=0).max() > 0.01  # the pictures do differ


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_gives_what_the_model_says_and_its_features(tmp_path: Path, family: str) -> None:
    tagger = WdTagger.load(save_tiny_wd(tmp_path, family=family), name="tiny")
    inputs = [tagger.preprocess(image) for image in pictures()]
    features, probabilities = tagger.forward(inputs)
    with torch.inference_mode():
        expected = torch.sigmoid(tagger.model(torch.stack(inputs)))
    assert torch.allclose(probabilities, expected, atol=1e-6)
    assert features.shape == (3, tagger.model.num_features)
    predictions = tagger.predict(inputs)
    for prediction, row, feature in zip(predictions, expected.numpy(), features.numpy(), strict=True):
        assert np.array_equal(prediction.outputs, np.flatnonzero(row >= 0.01))
        assert np.allclose(prediction.confidences, row[prediction.outputs], atol=1e-3)
        assert np.allclose(prediction.features, feature, rtol=2e-3, atol=2e-3)


def seen(**confidences: float) -> tuple[Prediction, tuple[Label, ...]]:
    """A sight of these confidences, in any order; names in capitals are characters, `_rating` is a rating."""
    labels = tuple(
        Label(caption_tag(name), 9 if name[0] == "_" else 4 if name.isupper() else 0) for name in sorted(confidences)
    )
    values = np.array([confidences[name] for name in sorted(confidences)], np.float16)
    return Prediction(np.arange(len(values), dtype=np.uint16), values), labels


def test_tags_are_chosen_by_two_thresholds_and_sorted() -> None:
    prediction, labels = seen(_general=0.9, a=0.36, b=0.35, c=0.34, long_hair=0.9, ANNA=0.84, BEA=0.86)
    assert describe(prediction, labels, TagSelection()).caption == "long hair, BEA, a, b"
    assert (
        describe(prediction, labels, TagSelection(threshold=0.5, character_threshold=0.5)).caption
        == "long hair, BEA, ANNA"
    )
    assert describe(prediction, labels, TagSelection(threshold=0.95, character_threshold=0.95)) == Description()


@pytest.mark.parametrize(
    ("only", "exclude", "said"),
    [
        ((), ("hair",), "long hair, hat, dog"),
        ((), ("LONG_hair", " dog "), "hat"),
        (("long_hair", "dog", "cat"), (), "long hair, dog"),
        (("hat", "dog"), ("dog",), "hat"),
    ],
)
def test_lists_match_whole_tags(only: tuple[str, ...], exclude: tuple[str, ...], said: str) -> None:
    prediction, labels = seen(long_hair=0.9, hat=0.8, dog=0.7)
    assert describe(prediction, labels, TagSelection(only=only, exclude=exclude)).caption == said


def test_what_several_taggers_say_is_joined() -> None:
    first = Description(tags=(Tag("cat", 0.9), Tag("hat", 0.4)))
    second = Description(tags=(Tag("hat", 0.8), Tag("Cat", 0.5), Tag("red", 0.6)))
    assert merged([first, second]).tags == (Tag("cat", 0.9), Tag("hat", 0.8), Tag("red", 0.6))
    sentence = Description(sentence="a cat, red")
    assert merged([first, second, sentence]).caption == "a cat, red, cat, hat"
    assert merged([sentence, sentence]).caption == "a cat, red"


def test_the_embedded_pack_writes_what_the_loader_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from demo_pack import tagger as pack

    torch.manual_seed(1)
    tags = [("red", 9), ("cat face", 9), ("animal mammal", 9)]
    pack.write(pack.build(len(tags)), tags, tmp_path)
    image = pictures()[2].resize((128, 128))
    loaded = find_tagger(str(tmp_path), home=Home(tmp_path)).load()
    assert isinstance(loaded, WdTagger)
    expected = pack.Tagger(tmp_path).probabilities(np.asarray(image)[None])
    assert torch.allclose(loaded.forward([loaded.preprocess(image)])[1], expected, atol=1e-5)
    said = descriptions(loaded, [image], TagSelection(threshold=0.0))
    assert {tag.name for tag in said[0].tags} == {"red", "cat face", "animal mammal"}


def test_kaomoji_keep_their_underscores() -> None:
    assert [caption_tag(name) for name in ("long_hair", "^_^", "||_||", "hat_(x)", "o_o", "._.")] == [
        "long hair",
        "^_^",
        "||_||",
        "hat (x)",
        "o_o",
        "._.",
    ]


@pytest.mark.parametrize(
    "text", ["no,such\n1,2\n", "tag_id,name,category,count\n1,a,general,3\n", "tag_id,name\n1,a\n"]
)
def test_a_broken_table_of_tags(tmp_path: Path, text: str) -> None:
    (tmp_path / "selected_tags.csv").write_text(text)
    with pytest.raises(InputError, match=r"selected_tags\.csv"):
        read_labels(tmp_path / "selected_tags.csv")


def test_outputs_and_tags_must_fit_together(tmp_path: Path) -> None:
    save_tiny_wd(tmp_path)
    lines = (tmp_path / "selected_tags.csv").read_text().splitlines()
    (tmp_path / "selected_tags.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=f"{len(WD_TAGS)} outputs and {len(WD_TAGS) - 1} tags"):
        WdTagger.load(tmp_path, name="tiny")


def test_weights_must_fit_the_model(tmp_path: Path) -> None:
    save_tiny_wd(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["depth"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot be loaded"):
        WdTagger.load(tmp_path, name="tiny")
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be loaded"):
        WdTagger.load(tmp_path, name="tiny")


@pytest.mark.parametrize("older", [False, True])
def test_blip_says_a_sentence_of_its_words(tmp_path: Path, blip_folder: Path, older: bool) -> None:
    folder = blip_folder
    if older:  # the files of Salesforce's repositories
        from transformers import BlipImageProcessor

        folder = save_tiny_blip(tmp_path)
        (folder / "processor_config.json").unlink()
        BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        assert (folder / "preprocessor_config.json").is_file()
    tagger = find_tagger(str(folder), home=Home(folder)).load()
    assert isinstance(tagger, BlipTagger)
    assert [
        prediction.features.shape for prediction in tagger.predict([tagger.preprocess(image) for image in pictures()])
    ] == [(16,)] * 3
    said = descriptions(tagger, pictures())
    assert len(said) == 3
    for description in said:
        assert description.tags == ()
        assert description.caption
        assert set(description.caption.split()) <= set(WORDS)
    assert [descriptions(tagger, [image])[0] for image in pictures()] == said


def test_a_folder_in_the_studios_models_folder(home: Home) -> None:
    save_tiny_wd(home.models / "my tagger")
    assert fetch_tagger("my tagger", home=home) == (home.models / "my tagger").resolve()


@pytest.mark.parametrize(
    ("remove", "make", "told"),
    [
        ("config.json", None, "has no config.json"),
        ("selected_tags.csv", None, "has no selected_tags.csv"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("model.safetensors", "pytorch_model.bin", "pytorch_model.bin is a pickle"),
        ("model.safetensors", "model.onnx", "ONNX"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, remove: str, make: str | None, told: str) -> None:
    save_tiny_wd(tmp_path)
    (tmp_path / remove).unlink()
    if make:
        (tmp_path / make).touch()
    with pytest.raises(InputError, match=told) as caught:
        find_tagger(str(tmp_path), home=Home(tmp_path))
    assert caught.value.remedy


def test_other_models_are_refused(tmp_path: Path, blip_folder: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="neither a WD tagger"):
        read_layout(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_layout(tmp_path)
    (tmp_path / "weights.pt").touch()
    with pytest.raises(InputError, match=r"weights\.pt is a pickle"):
        fetch_tagger(str(tmp_path / "weights.pt"), home=Home(tmp_path))
    with pytest.raises(InputError, match="is no folder"):
        fetch_tagger(str(tmp_path / "config.json"), home=Home(tmp_path))


@pytest.mark.parametrize("name", ["no tagger", "", "../../no such place", "a/b/c"])
def test_an_unknown_name_lists_the_known_ones(name: str, home: Home) -> None:
    with pytest.raises(InputError, match="no tagger") as caught:
        fetch_tagger(name, home=home)
    assert "wd14" in caught.value.remedy


def test_without_a_network_the_repository_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("wd14", "some/repository"):
        with pytest.raises(InputError, match="could not be downloaded") as caught:
            fetch_tagger(name, home=home)
        repo = CATALOGUE["wd14"].location if name == "wd14" else name
        assert str(repo) in caught.value.message
        assert "network" in caught.value.remedy


def test_a_repository_is_looked_at_before_its_weights_are_downloaded(
    wd_folder: Path, tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def download(repo: str, patterns: tuple[str, ...]) -> Path:
        asked.append(tuple(patterns))
        return wd_folder if repo == "good/tagger" else tmp_path

    monkeypatch.setattr(catalogue.hub, "download", download)
    assert fetch_tagger("good/tagger", home=home) == wd_folder
    assert [labels.WEIGHTS_FILE in patterns for patterns in asked] == [False, True]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    asked.clear()
    with pytest.raises(InputError, match="neither"):
        fetch_tagger("other/model", home=home)
    assert [labels.WEIGHTS_FILE in patterns for patterns in asked] == [False]


def test_descriptions_as_captions() -> None:
    assert Description(sentence="a cat, sitting").caption == "a cat, sitting"
    assert Description().caption == ""
