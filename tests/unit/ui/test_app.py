from __future__ import annotations

import gradio as gr
import pytest

from lora_studio.device import Gpu
from lora_studio.errors import InputError
from lora_studio.ui import app
from lora_studio.workspace.project import Home


def test_the_header_shows_why_a_gpu_is_not_usable(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    error = InputError("The RTX 4090 cannot be used: no CUDA.", "Run pip install torch==2.13.0+cu130.")
    monkeypatch.setattr(app, "find_gpu", lambda: Gpu("NVIDIA RTX 4090", 24.0))
    monkeypatch.setattr(app, "unused_gpu_error", lambda: error)
    texts = [block.value for block in app.build_app(home).blocks.values() if isinstance(block, gr.HTML)]
    (pills,) = [text for text in texts if text and "NVIDIA RTX 4090" in text]
    assert "pip install torch==2.13.0+cu130" in pills
    assert "24 GiB" not in pills
