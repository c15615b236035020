"""CLIP, SigLIP and DINOv2 as models of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_studio.errors import InputError
from lora_studio.measures.models import named_feature_model
from lora_studio.workspace.project import Home
from tests.support.tiny_vision import FAMILIES, save_tiny_vision


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_a_picture_do_not_depend_on_its_batch(family: str, tmp_path: Path) -> None:
    model = named_feature_model(str(save_tiny_vision(tmp_path / family, family)), Home(tmp_path)).load(on_cpu=True)
    pictures = [Image.new("RGB", size, colour) for size, colour in (((40, 20), "red"), ((16, 30), "blue"))]
    inputs = [model.preprocess(picture) for picture in pictures]
    together = [found.features for found in model.predict(inputs)]
    alone = [model.predict([single])[0].features for single in inputs]
    assert np.allclose(together, alone, atol=2e-3)
    assert together[0].shape == (FAMILIES[family][1],)
    assert not np.allclose(together[0], together[1], atol=2e-3)


def test_names_a_model_whose_weights_do_not_match(tmp_path: Path) -> None:
    folder = save_tiny_vision(tmp_path / "dino")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError) as error:
        named_feature_model(str(folder), Home(tmp_path)).load(on_cpu=True)
    assert error.value.code == "feature_model_broken"
