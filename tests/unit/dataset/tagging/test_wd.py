"""WD taggers, on tiny models in the files that real ones have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.dataset.tagging.selection import TagSelection
from lora_studio.dataset.tagging.wd import WdTagger
from lora_studio.errors import InputError
from lora_studio.workspace.project import Home
from tests.support.tiny_taggers import (
    FAMILIES,
    WD_SIZE,
    WD_TAGS,
    coloured_images,
    descriptions,
    save_tiny_wd,
)

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def wd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_wd(tmp_path_factory.mktemp("wd"))


def reference_probabilities(folder: Path, image: Image.Image) -> np.ndarray:
    """Return probabilities after the published preprocessing: white square, bicubic, mean and deviation 0.5, BGR."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    rgb = np.asarray(square.resize((WD_SIZE, WD_SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    bgr = torch.from_numpy(((rgb - 0.5) / 0.5)[:, :, ::-1].transpose(2, 0, 1).copy())
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        return torch.sigmoid(model(bgr[None]))[0].numpy()


def test_preprocessing_is_that_of_the_series(wd_folder: Path) -> None:
    tagger = WdTagger.load(wd_folder, name="tiny")
    got = tagger.forward([tagger.preprocess(image) for image in coloured_images()])[1].numpy()
    expected = np.stack([reference_probabilities(wd_folder, image) for image in coloured_images()])
    assert np.abs(got - expected).max() < 1e-5
    assert np.ptp(expected, axis=0).max() > 0.01  # the images differ


@pytest.mark.parametrize("family", FAMILIES)
def test_one_forward_pass_returns_probabilities_and_features(tmp_path: Path, family: str) -> None:
    tagger = WdTagger.load(save_tiny_wd(tmp_path, family=family), name="tiny")
    inputs = [tagger.preprocess(image) for image in coloured_images()]
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


def test_refuses_a_table_with_another_number_of_tags(tmp_path: Path) -> None:
    save_tiny_wd(tmp_path)
    lines = (tmp_path / "selected_tags.csv").read_text().splitlines()
    (tmp_path / "selected_tags.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=rf"\b{len(WD_TAGS)} .*\b{len(WD_TAGS) - 1} ") as caught:
        WdTagger.load(tmp_path, name="tiny")
    assert caught.value.code == "tagger_broken"


def test_refuses_weights_of_another_model(tmp_path: Path) -> None:
    save_tiny_wd(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["depth"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        WdTagger.load(tmp_path, name="tiny")
    assert caught.value.code == "tagger_broken"
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError) as caught:
        WdTagger.load(tmp_path, name="tiny")
    assert caught.value.code == "tagger_broken"


def test_loads_taggers_that_the_pack_builder_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from demo_pack import tagger as pack

    torch.manual_seed(1)
    tags = [("red", 9), ("cat face", 9), ("animal mammal", 9)]
    pack.write(pack.build(len(tags)), tags, tmp_path)
    image = coloured_images()[2].resize((128, 128))
    loaded = find_tagger(str(tmp_path), home=Home(tmp_path)).load()
    assert isinstance(loaded, WdTagger)
    expected = pack.Tagger(tmp_path).probabilities(np.asarray(image)[None])
    assert torch.allclose(loaded.forward([loaded.preprocess(image)])[1], expected, atol=1e-5)
    described = descriptions(loaded, [image], TagSelection(threshold=0.0))
    assert {tag.name for tag in described[0].tags} == {"red", "cat face", "animal mammal"}
