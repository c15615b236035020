"""Metadata is edited and stripped in a copy whose tensors are the same byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from lora_studio.errors import InputError
from lora_studio.lora.header import read_lora_header
from lora_studio.lora.tools.metadata import edit_metadata, read_metadata, strip_metadata
from tests.support.lora_layers import LINEAR, random_layer, write_layers
from tests.support.training_runs import same

BEFORE = {
    "ss_tag_frequency": '{"10_x": {"my secret": 3}}',
    "ss_network_module": "networks.lora",
    "ss_network_dim": "4",
    "sshs_model_hash": "1",
    "sshs_legacy_hash": "2",
    "modelspec.title": "Old",
    "modelspec.date": "2026",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_layers(tmp_path / "x.safetensors", {LINEAR: random_layer("lora")[0]}, **BEFORE)


def test_fields_are_set_and_removed_and_the_rest_is_kept(source: Path, tmp_path: Path) -> None:
    changes = {"title": "Ink — Tusche", "license": "CC0", "trigger": "inkstamp_hc", "modelspec.date": ""}
    before = source.read_bytes()
    edit_metadata(source, tmp_path / "y.safetensors", changes)
    edited = read_metadata(tmp_path / "y.safetensors")
    added = {"modelspec.title": "Ink — Tusche", "modelspec.license": "CC0", "modelspec.trigger_phrase": "inkstamp_hc"}
    assert edited == {key: value for key, value in (BEFORE | added).items() if key != "modelspec.date"}
    assert same(load_file(tmp_path / "y.safetensors"), load_file(source))
    lora = read_lora_header(tmp_path / "y.safetensors")
    assert lora.trigger_word == "inkstamp_hc"
    assert lora.model_hash == read_lora_header(source).model_hash
    assert lora.data_offset % 8 == 0
    assert source.read_bytes() == before


def test_stripping_leaves_what_loading_needs(source: Path, tmp_path: Path) -> None:
    strip_metadata(source, tmp_path / "y.safetensors")
    kept = {"ss_network_module": "networks.lora", "ss_network_dim": "4", "sshs_model_hash": "1"}
    assert read_metadata(tmp_path / "y.safetensors") == kept
    assert b"secret" not in (tmp_path / "y.safetensors").read_bytes()
    assert same(load_file(tmp_path / "y.safetensors"), load_file(source))


@pytest.mark.parametrize(
    ("changes", "code"), [({"colour": "red"}, "metadata_field"), ({"title": "x" * 5_000_000}, "metadata_size")]
)
def test_unknown_fields_and_huge_values_are_refused(source: Path, tmp_path: Path, changes: dict, code: str) -> None:
    with pytest.raises(InputError) as caught:
        edit_metadata(source, tmp_path / "y.safetensors", changes)
    assert caught.value.code == code
    assert not (tmp_path / "y.safetensors").exists()


def test_the_original_is_not_overwritten(source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(InputError) as caught:
        strip_metadata(source, source)
    assert caught.value.code == "exists"
    assert source.read_bytes() == before
