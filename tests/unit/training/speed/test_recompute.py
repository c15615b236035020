"""Activation checkpointing per block: the predicted bytes are those saved, and losses and gradients do not change."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lora_studio.lora.inject import Adapters, add_adapters
from lora_studio.training.speed.recompute import BlockCheckpointing, BlockCost, choose_recomputed
from tests.support.live_memory import LiveTensors
from tests.support.tiny_sdxl import make_pipeline
from tests.support.training_runs import recipe_of, same

COSTS = st.lists(st.builds(BlockCost, st.integers(0, 100), st.integers(1, 5)), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[UNet2DConditionModel, Adapters]:
    unet = make_pipeline(tmp_path_factory.mktemp("tokenizers"), layers=1).unet.requires_grad_(False)
    adapters = add_adapters(unet, [], recipe_of())
    for number, weight in enumerate(adapters.parameters("unet")):
        torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(number))
    unet.train()
    return unet, adapters


def loss_of(unet: nn.Module, side: int = 16) -> Tensor:
    source = torch.Generator().manual_seed(1)
    latents, text = torch.randn(2, 4, side, side, generator=source), torch.randn(2, 77, 40, generator=source)
    added = {"text_embeds": torch.ones(2, 24), "time_ids": torch.ones(2, 6)}
    result: Tensor = unet(latents, torch.tensor([300, 600]), text, added_cond_kwargs=added).sample
    return (result**2).mean()


def saved_bytes(unet: nn.Module, checkpointing: BlockCheckpointing) -> int:
    """Return the bytes that a forward pass keeps: what autograd saves, and the inputs of recomputed blocks."""
    weights = {weight.untyped_storage()._cdata for weight in (*unet.parameters(), *unet.buffers())}
    saved: list[Tensor] = []

    def save_inputs(module: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        if result.requires_grad:
            saved.extend(entry for entry in inputs if isinstance(entry, Tensor))

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    hooks = [block.register_forward_hook(save_inputs) for block in checkpointing.recomputed]
    with saved_tensors_hooks(save, lambda tensor: tensor):
        loss_of(unet)
    for hook in hooks:
        hook.remove()
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in saved}
    return sum(size for number, size in storages.items() if number not in weights)


@given(costs=COSTS, share=st.floats(0, 1.2))
def test_the_chosen_blocks_are_enough_and_none_is_superfluous(costs: list[BlockCost], share: float) -> None:
    total = sum(cost.saved_bytes for cost in costs)
    chosen = choose_recomputed(costs, share * total)
    left = total - sum(costs[index].saved_bytes for index in chosen)
    assert left <= share * total
    assert all(left + costs[index].saved_bytes > share * total for index in chosen)
    assert len(choose_recomputed(costs, -1)) == len(costs)


def test_cheap_blocks_are_chosen_before_others_and_first_blocks_before_equal_ones() -> None:
    equal = [BlockCost(10, 5)] * 4
    assert choose_recomputed(equal, 20) == [0, 1]
    assert choose_recomputed([*equal, BlockCost(20, 5)], 40) == [4]


def test_saved_bytes_are_as_predicted_and_results_equal_for_any_budget(
    adapted: tuple[UNet2DConditionModel, Adapters],
) -> None:
    """Losses and gradients are equal bit for bit."""
    unet, adapters = adapted
    checkpointing = BlockCheckpointing(unet, preserve_rng_state=False)
    before = checkpointing.blocks
    fixed, costs = checkpointing.measure(lambda: loss_of(unet))
    total = sum(cost.saved_bytes for cost in costs)
    assert len(costs) == len(before) == 21
    assert set(before) == set(checkpointing.blocks)
    results, counts = [], []
    for share in (1.0, 0.75, 0.4, 0.0):
        chosen = choose_recomputed(costs, share * total)
        checkpointing.recompute_only(chosen)
        predicted = fixed + total - sum(costs[index].saved_bytes for index in chosen)
        assert predicted <= fixed + share * total
        assert saved_bytes(unet, checkpointing) == pytest.approx(predicted, rel=0.05)
        counts.append(len(chosen))
        loss = loss_of(unet)
        loss.backward()
        results.append({"loss": loss.detach()})
        for number, weight in enumerate(adapters.parameters("unet")):
            assert weight.grad is not None
            results[-1][str(number)] = weight.grad.clone()
            weight.grad = None
    assert counts[0] == 0 < counts[1] < counts[2] < counts[3]
    assert all(same(result, results[0]) for result in results[1:])
    checkpointing.recompute_only([])
    assert not unet.is_gradient_checkpointing


def test_blocks_are_measured_in_the_order_of_the_forward_pass(adapted: tuple[UNet2DConditionModel, Adapters]) -> None:
    unet, _ = adapted
    checkpointing = BlockCheckpointing(unet, preserve_rng_state=False)
    checkpointing.measure(lambda: loss_of(unet))
    names = {module: name for name, module in unet.named_modules()}
    order = [names[block] for block in checkpointing.blocks]
    assert order[0] == "down_blocks.0.resnets.0"
    assert order[1:3] == ["down_blocks.1.resnets.0", "down_blocks.1.attentions.0.transformer_blocks.0"]
    assert order[-1].startswith("up_blocks.2.resnets")


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_measuring_takes_no_more_memory_than_recomputing_all_blocks_and_keeps_none(
    adapted: tuple[UNet2DConditionModel, Adapters], fails: bool
) -> None:
    unet, _ = adapted
    checkpointing = BlockCheckpointing(unet, preserve_rng_state=False)
    checkpointing.recompute_all()
    with LiveTensors() as live:
        loss_of(unet, side=32)
        gc.collect()
        live.reset_peak()
        before = live.now
        loss_of(unet, side=32).backward()
        recomputed = live.peak - before
        unet.zero_grad()
        gc.collect()
        before = live.now
        live.reset_peak()
        if fails:
            live.limit = before + recomputed / 2
            with pytest.raises(torch.OutOfMemoryError):
                checkpointing.measure(lambda: loss_of(unet, side=32))
        else:
            checkpointing.measure(lambda: loss_of(unet, side=32))
            assert live.peak - before <= 1.1 * recomputed
        gc.collect()
        assert live.now == before


@pytest.mark.parametrize(("written", "meant"), [(True, "on"), (False, "off"), ("auto", "auto"), ("off", "off")])
def test_gradient_checkpointing_may_be_written_as_a_boolean(written: object, meant: str) -> None:
    assert recipe_of(gradient_checkpointing=written).gradient_checkpointing == meant
