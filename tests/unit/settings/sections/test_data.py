"""Settings of the data: the resolution."""

from __future__ import annotations

import pytest

from lora_studio.errors import ConfigError
from lora_studio.settings.recipe import Recipe


def test_resolution_need_not_be_a_multiple_of_the_bucket_steps_without_upscaling() -> None:
    assert Recipe.parse({"resolution": 1000}).resolution == 1000


def test_a_resolution_that_is_not_a_multiple_of_8_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        Recipe.parse({"resolution": 1001})
