"""The modes of modules around an evaluation."""

from __future__ import annotations

import pytest
from torch import nn

from lora_studio.training.trainer import eval_mode


def test_each_module_returns_to_its_own_mode_also_after_an_error() -> None:
    trained, frozen = nn.Dropout(), nn.Dropout().eval()
    with eval_mode(trained, frozen):
        assert not trained.training
        assert not frozen.training
    assert trained.training
    assert not frozen.training
    with pytest.raises(RuntimeError), eval_mode(trained, frozen):
        raise RuntimeError
    assert trained.training
    assert not frozen.training
