"""Rank and module dropout against their probabilities and sd-scripts' formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from lora_studio.lora.dropout import LowRankDropout
from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.rng import seeded_dropout
from lora_studio.training.reporting.network_metadata import build_network_metadata
from tests.support.networks import add_random_adapters, eval_pipeline, in_tiers, recipe_of, unet_output

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    return eval_pipeline(tmp_path_factory.mktemp("tokenizers"))


@pytest.mark.parametrize(
    ("down", "shape", "ranks"),
    [
        (nn.Linear(3, 50), (40, 3), -1),
        (nn.Linear(3, 50), (40, 7, 3), -1),
        (nn.Conv2d(3, 50, 3, padding=1), (40, 3, 4, 5), 1),
    ],
)
def test_a_rank_is_dropped_for_a_whole_sample_and_the_others_grow(
    down: nn.Module, shape: tuple[int, ...], ranks: int
) -> None:
    torch.manual_seed(3)
    whole = torch.ones_like(down(torch.zeros(shape)))
    dropped = LowRankDropout(0.25, 0)(down, (), whole).movedim(ranks, 1).flatten(1).view(40, 50, -1)
    per_rank = dropped[..., 0]
    assert torch.equal(dropped, per_rank.unsqueeze(-1).expand_as(dropped))
    torch.testing.assert_close(per_rank, 4 / 3 * (per_rank > 0))
    assert float((per_rank == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert len({tuple(sample.tolist()) for sample in per_rank}) == 40


def test_a_module_is_dropped_for_a_whole_batch_without_compensation() -> None:
    torch.manual_seed(3)
    down, whole = nn.Linear(3, 5), torch.ones(4, 5)
    results = [LowRankDropout(0, 0.3)(down, (), whole) for _ in range(1000)]
    kept = [bool(result.any()) for result in results]
    assert all(torch.equal(result, whole * float(keep)) for result, keep in zip(results, kept, strict=True))
    assert sum(kept) / len(kept) == pytest.approx(0.7, abs=0.04)
    down.eval()
    assert all(torch.equal(LowRankDropout(0.5, 0.9)(down, (), whole), whole) for _ in range(9))


def outputs(pipe: StableDiffusionXLPipeline, network: str, **dropout: Any) -> tuple[Tensor, list[Tensor]]:
    """Return the UNet's prediction in eval mode, then those of three steps in training mode, the last two the same."""
    pipe = copy.deepcopy(pipe)
    recipe = recipe_of(network, **dropout)
    add_random_adapters(pipe, recipe)
    for model in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
        model.eval()
    evaluated = unet_output(pipe)
    pipe.unet.train()
    trained = []
    for step in (0, 1, 1):
        with seeded_dropout(recipe, step, 0, device=CPU):
            trained.append(unet_output(pipe))
    return evaluated, trained


@pytest.mark.parametrize("name", ["rank_dropout", "module_dropout"])
@pytest.mark.parametrize("network", in_tiers(["LoRA", "LoCon", "DoRA", "LoHa", "LoKr"], fast=["LoKr"]))
def test_every_network_drops_in_training_only_and_by_the_step(
    network: str, name: str, bare: StableDiffusionXLPipeline
) -> None:
    plain, (undropped, *_) = outputs(bare, network)
    evaluated, (first, second, again) = outputs(bare, network, **{name: 0.4})
    assert torch.equal(evaluated, plain)
    assert torch.equal(undropped, plain)
    assert torch.equal(second, again)
    assert not torch.allclose(first, plain, atol=1e-4)
    assert not torch.allclose(first, second, atol=1e-4)


def test_metadata_has_sd_scripts_network_arguments() -> None:
    recipe = Recipe.parse({"rank_dropout": 0.1, "module_dropout": 0.25})
    assert build_network_metadata(recipe)["ss_network_args"] == {"rank_dropout": "0.1", "module_dropout": "0.25"}
    assert build_network_metadata(Recipe())["ss_network_args"] == {}
