"""A merged LoRA changes every weight by the weighted sum of what its parts change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_studio.errors import InputError
from lora_studio.lora.tools.merge import merge_loras
from tests.support.lora_layers import CONV, LINEAR, NORM, TEXT, random_layer, read_deltas, write_layers
from tests.support.networks import metadata_of


@settings(max_examples=25)
@given(
    weights=st.lists(st.floats(-2, 2), min_size=2, max_size=3),
    kernel=st.sampled_from([0, 3]),
    ranks=st.lists(st.integers(1, 5), min_size=3, max_size=3),
)
def test_concatenated_ranks_are_the_exact_sum(
    tmp_path_factory: pytest.TempPathFactory, weights: list[float], kernel: int, ranks: list[int]
) -> None:
    folder, layer = tmp_path_factory.mktemp("sum"), CONV if kernel else LINEAR
    paths, total = [], 0
    for number, weight in enumerate(weights):
        parts, delta = random_layer("lora", kernel=kernel, seed=number, rank=ranks[number])
        paths.append(write_layers(folder / f"{number}.safetensors", {layer: parts}))
        total = total + weight * delta
    report = merge_loras(paths, folder / "sum.safetensors", weights=weights)
    assert report.error == 0
    assert report.layers[0].rank == sum(ranks[: len(weights)])
    torch.testing.assert_close(read_deltas(report.out)[layer], total, atol=1e-4, rtol=1e-4)


def test_types_are_mixed_at_a_rank(tmp_path: Path) -> None:
    total, paths = 0, []
    for number, kind in enumerate(("lora", "loha", "lokr", "full")):
        parts, delta = random_layer(kind, kernel=3, seed=number)
        paths.append(write_layers(tmp_path / f"{kind}.safetensors", {CONV: parts}))
        total = total + 0.5 * delta
    full = merge_loras(paths, tmp_path / "whole.safetensors", weights=[0.5] * 4, rank=12)
    torch.testing.assert_close(read_deltas(full.out)[CONV], total, atol=1e-4, rtol=1e-4)
    low = merge_loras(paths, tmp_path / "low.safetensors", weights=[0.5] * 4, rank=3)
    values = torch.linalg.svdvals(total.double())
    assert low.error == pytest.approx(float((values[3:].square().sum() / values.square().sum()).sqrt()), abs=1e-6)
    with pytest.raises(InputError) as caught:
        merge_loras(paths, tmp_path / "no.safetensors")
    assert caught.value.code == "merge_rank"


def test_layers_of_one_file_spellings_and_norms_are_carried_over(tmp_path: Path) -> None:
    (first, delta), (second, other) = random_layer("lora", seed=1), random_layer("lora", seed=2)
    one = write_layers(
        tmp_path / "one.safetensors", {LINEAR: first, NORM: {"w_norm": torch.ones(3)}}, ss_seed="1", ss_v2="False"
    )
    peft = "unet.down_blocks.1.attentions.0.proj_in"
    two = {peft: {"lora_A.weight": second["lora_down.weight"], "lora_B.weight": second["lora_up.weight"]}}
    two |= {TEXT: random_layer("lora", seed=3)[0], NORM: {"w_norm": torch.ones(3)}}
    path = write_layers(tmp_path / "two.safetensors", two, ss_seed="2", ss_v2="False")
    found = read_deltas(merge_loras([one, path], tmp_path / "sum.safetensors", weights=[1, -1]).out)
    torch.testing.assert_close(found[LINEAR], delta - other * 4 / 3, atol=1e-4, rtol=1e-4)  # alpha is the rank in two
    assert set(found) == {LINEAR, TEXT, NORM}
    assert not found[NORM].any()
    metadata = metadata_of(tmp_path / "sum.safetensors")
    assert metadata["ss_v2"] == "False"
    assert "ss_seed" not in metadata
    assert metadata["modelspec.merged_from"] == "one, two"


@pytest.mark.parametrize(
    ("count", "options", "code"),
    [
        (1, {}, "merge_count"),
        (2, {"weights": [1.0]}, "merge_weights"),
        (2, {"weights": [1.0, float("nan")]}, "merge_weights"),
        (2, {"rank": -1}, "rank"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, count: int, options: dict, code: str) -> None:
    path = write_layers(tmp_path / "x.safetensors", {LINEAR: random_layer("lora")[0]})
    with pytest.raises(InputError) as caught:
        merge_loras([path] * count, tmp_path / "y.safetensors", **options)
    assert caught.value.code == code


def test_a_dora_and_nan_are_refused(tmp_path: Path) -> None:
    plain = write_layers(tmp_path / "x.safetensors", {LINEAR: random_layer("lora")[0]})
    dora = random_layer("lora")[0] | {"dora_scale": torch.ones(1, 8)}
    broken = random_layer("lora")[0]
    broken["lora_up.weight"][0] = torch.nan
    for parts, code in ((dora, "lora_dora"), (broken, "lora_not_finite")):
        other = write_layers(tmp_path / "other.safetensors", {LINEAR: parts})
        with pytest.raises(InputError) as caught:
            merge_loras([plain, other], tmp_path / "y.safetensors")
        assert caught.value.code == code
        assert not (tmp_path / "y.safetensors").exists()
