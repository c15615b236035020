"""Checkpoints of other architectures are recognised by their tensors or their pipeline class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_studio.models import architectures
from lora_studio.models.architectures import is_adapter, kind_of_pipeline, kind_of_tensors, read_header


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("model.diffusion_model.double_blocks.0.img_attn.proj.weight", "FLUX"),
        ("double_blocks.0.img_attn.proj.weight", "FLUX"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight", "Stable Diffusion 3"),
        ("cond_stage_model.transformer.text_model.embeddings.position_ids", "Stable Diffusion 1"),
        ("cond_stage_model.model.token_embedding.weight", "Stable Diffusion 2"),
        ("conditioner.embedders.0.model.text_projection", "refiner"),
        ("model.diffusion_model.label_emb.0.0.weight", "without text encoders"),
        ("decoder.conv_in.weight", "VAE"),
        ("model.layers.0.self_attn.q_proj.weight", ""),
    ],
)
def test_single_files_are_recognised_by_their_tensors(tensor: str, named: str) -> None:
    kind = kind_of_tensors([tensor])
    assert named in kind
    assert bool(kind) == bool(named)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ("lora_unet_down_blocks_1.lora_down.weight", True),
        ("lora_unet_down_blocks_1.hada_w1_a", True),
        ("lora_unet_down_blocks_1.lokr_w2", True),
        ("model.diffusion_model.input_blocks.0.0.weight", False),
    ],
)
def test_adapters_are_recognised(tensor: str, expected: bool) -> None:
    assert is_adapter([tensor]) is expected


def test_pipelines_of_other_models_are_named() -> None:
    assert kind_of_pipeline("StableDiffusionXLPipeline") == ""
    assert "FLUX" in kind_of_pipeline("FluxPipeline")
    assert "SanaPipeline" in kind_of_pipeline("SanaPipeline")


def safetensors(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_a_header_is_read_within_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    file = safetensors(tmp_path / "a.safetensors", {"__metadata__": {"a": "1"}, "x": entry, "y": entry})
    assert read_header(file) == ({"x", "y"}, {"a": "1"})
    monkeypatch.setattr(architectures, "MAX_TENSORS", 1)
    with pytest.raises(ValueError, match="2 tensors; the limit is 1"):
        read_header(file)
    large = safetensors(tmp_path / "b.safetensors", b"{}" + b" " * (33 << 20))
    with pytest.raises(ValueError, match="33 MiB; the limit is 32 MiB"):
        read_header(large)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b"",
        b"null",
        {"x": 1},
        {"x": {"data_offsets": [0]}},
        {"x": {"data_offsets": ["a", "b"]}},
        {"x": {"data_offsets": [0, None]}},
        {"__metadata__": [1]},
    ],
)
def test_a_damaged_header_is_an_error_of_its_own_kind(tmp_path: Path, header: object) -> None:
    with pytest.raises(ValueError, match=r"header|metadata"):
        read_header(safetensors(tmp_path / "a.safetensors", header))
