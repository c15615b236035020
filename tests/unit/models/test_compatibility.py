"""The check that peft can inject a LoRA into a text encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_studio.errors import InputError
from lora_studio.models import compatibility
from lora_studio.models.compatibility import check_peft_compatibility


def test_the_installed_libraries_are_compatible_and_the_check_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    check_peft_compatibility()
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_of_peft_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise AttributeError("no attribute 'peft_config'")

    monkeypatch.setattr(compatibility, "inject_adapter_in_model", fail)
    with pytest.raises(InputError, match="peft_config") as caught:
        check_peft_compatibility()
    assert caught.value.code == "libraries"


def test_layers_without_an_adapter_are_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "inject_adapter_in_model", lambda config, model: model)
    with pytest.raises(InputError, match="0 of 2") as caught:
        check_peft_compatibility()
    assert caught.value.code == "libraries"
