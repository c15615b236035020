"""A resized LoRA is the best one of its rank, and its reported error is the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lora_studio.errors import InputError
from lora_studio.lora.tools.resize import resize_lora
from tests.support.lora_layers import CONV, LINEAR, NORM, OUT, TEXT, random_layer, read_deltas, write_layers
from tests.support.networks import metadata_of

KINDS = ("lora", "loha", "lokr", "full")


@settings(max_examples=25)
@given(kind=st.sampled_from(KINDS), kernel=st.sampled_from([0, 3]), seed=st.integers(0, 99))
def test_at_full_rank_every_type_keeps_its_delta(
    tmp_path_factory: pytest.TempPathFactory, kind: str, kernel: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("full")
    layer = CONV if kernel else LINEAR
    parts, delta = random_layer(kind, kernel=kernel, seed=seed)
    report = resize_lora(write_layers(folder / "x.safetensors", {layer: parts}), folder / "y.safetensors", rank=OUT)
    assert report.error < 1e-6
    torch.testing.assert_close(read_deltas(report.out)[layer], delta, atol=1e-4, rtol=1e-4)
    assert load_file(report.out)[f"{layer}.lora_down.weight"].shape[2:] == (kernel,) * (2 * bool(kernel))


@settings(max_examples=25)
@given(kind=st.sampled_from(KINDS), rank=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_reported_error_is_the_distance_to_the_best_approximation(
    tmp_path_factory: pytest.TempPathFactory, kind: str, rank: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("low")
    parts, delta = random_layer(kind, seed=seed)
    report = resize_lora(write_layers(folder / "x.safetensors", {LINEAR: parts}), folder / "y.safetensors", rank=rank)
    (layer,) = report.layers
    values = torch.linalg.svdvals(delta.double())
    lost = float((values[layer.rank :].square().sum() / values.square().sum()).sqrt())
    real = float((read_deltas(report.out)[LINEAR] - delta).norm() / delta.norm())
    assert layer.rank <= rank
    assert report.error == pytest.approx(lost, abs=1e-6)
    assert layer.error == pytest.approx(lost, abs=1e-6)
    assert real == pytest.approx(lost, abs=1e-5)


@settings(max_examples=20)
@given(keep=st.floats(0.05, 1), seed=st.integers(0, 99))
def test_a_share_of_the_norm_is_kept_with_as_few_ranks_as_possible(
    tmp_path_factory: pytest.TempPathFactory, keep: float, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("keep")
    parts, delta = random_layer("full", seed=seed)
    report = resize_lora(write_layers(folder / "x.safetensors", {LINEAR: parts}), folder / "y.safetensors", keep=keep)
    (layer,) = report.layers
    kept = torch.linalg.svdvals(delta.double()).square().cumsum(0).sqrt() / delta.double().norm()
    assert kept[layer.rank - 1] >= keep - 1e-6
    assert layer.rank == 1 or kept[layer.rank - 2] < keep + 1e-6


def test_norms_magnitudes_and_other_layers_are_kept(tmp_path: Path) -> None:
    lora, _ = random_layer("lora")
    text, delta = random_layer("lora", seed=1)
    lora["dora_scale"] = torch.rand(1, 8)
    source = write_layers(
        tmp_path / "x.safetensors",
        {LINEAR: lora, TEXT: text, NORM: {"w_norm": torch.ones(5)}},
        ss_network_dim="4",
        **{"modelspec.title": "Ink"},
    )
    report = resize_lora(source, tmp_path / "y.safetensors", rank=2, dtype="float16")
    tensors, metadata = load_file(report.out), metadata_of(report.out)
    assert torch.equal(tensors[f"{NORM}.w_norm"], torch.ones(5))
    assert torch.equal(tensors[f"{LINEAR}.dora_scale"], lora["dora_scale"])
    assert tensors[f"{LINEAR}.lora_up.weight"].dtype == torch.float16
    assert (metadata["modelspec.title"], metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("Ink", "2", "2")
    assert [layer.rank_before for layer in report.layers] == [4, 4]
    assert report.layers[0].error >= report.layers[1].error > 0
    assert report.bytes == report.out.stat().st_size < report.bytes_before
    assert delta.shape == read_deltas(report.out)[TEXT].shape


def test_a_layer_of_zeros_stays_zero(tmp_path: Path) -> None:
    parts, _ = random_layer("lora")
    parts["lora_up.weight"].zero_()
    report = resize_lora(
        write_layers(tmp_path / "x.safetensors", {LINEAR: parts}), tmp_path / "y.safetensors", keep=0.9
    )
    assert (report.layers[0].rank, report.error) == (1, 0)
    assert not read_deltas(report.out)[LINEAR].any()


@pytest.mark.parametrize(
    ("options", "code"),
    [({}, "rank"), ({"rank": 0}, "rank"), ({"keep": 1.5}, "keep"), ({"rank": 2, "dtype": "int8"}, "dtype")],
)
def test_wrong_options_are_refused_before_anything_is_written(tmp_path: Path, options: dict, code: str) -> None:
    source = write_layers(tmp_path / "x.safetensors", {LINEAR: random_layer("lora")[0]})
    with pytest.raises(InputError) as caught:
        resize_lora(source, tmp_path / "y.safetensors", **options)
    assert caught.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    source = write_layers(tmp_path / "x.safetensors", {LINEAR: random_layer("lora")[0]})
    before = source.read_bytes()
    for out, code in ((source, "exists"), (tmp_path / "y.pt", "out_format")):
        with pytest.raises(InputError) as caught:
            resize_lora(source, out, rank=2)
        assert caught.value.code == code
    assert source.read_bytes() == before


def test_layers_that_sdxl_does_not_have_and_ia3_are_refused(tmp_path: Path) -> None:
    for name, parts, code in (
        ("lora_unet_input_blocks_77_1_proj_in", random_layer("lora")[0], "lora_names"),
        ("lycoris_text_model_encoder_layers_0_mlp_fc1", random_layer("lora")[0], "lora_names"),
        (LINEAR, {"weight": torch.ones(8), "on_input": torch.tensor(1)}, "lora_network"),
        (NORM, {"w_norm": torch.ones(5)}, "lora_no_rank"),
    ):
        source = write_layers(tmp_path / "x.safetensors", {name: parts})
        with pytest.raises(InputError) as caught:
            resize_lora(source, tmp_path / "y.safetensors", rank=2)
        assert caught.value.code == code, name
        assert not (tmp_path / "y.safetensors").exists()
