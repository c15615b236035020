"""Gradient checkpointing block by block: what is foretold is what is kept, and nothing but the memory changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lora_studio.lora.inject import Adapters, add_adapters
from lora_studio.planning.memory import GIB
from lora_studio.settings.choices import GradientCheckpointing
from lora_studio.training import step as step_module
from lora_studio.training.run import Run
from lora_studio.training.speed.memory_budget import Memory
from lora_studio.training.speed.recompute import Blocks, Cost, choose
from lora_studio.training.step import fit_gpu_memory, train_step, train_step_retrying_oom
from lora_studio.workspace.job_folder import Report
from lora_studio.workspace.project import Home
from tests.support.tiny_sdxl import make_pipeline, save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, recipe_of, same, start

COSTS = st.lists(st.builds(Cost, st.integers(0, 100), st.integers(1, 5)), min_size=1, max_size=12)
Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[UNet2DConditionModel, Adapters]:
    unet = make_pipeline(tmp_path_factory.mktemp("tokenizers"), layers=1).unet.requires_grad_(False)
    adapters = add_adapters(unet, [], recipe_of())
    for number, weight in enumerate(adapters.parameters("unet")):
        torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(number))
    unet.train()
    return unet, adapters


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    base = save_tiny_sdxl(folder / "base", layers=1)
    images = make_images(folder / "images", [(64, 64), (32, 64), (64, 64)])
    job = make_job(base, images, gradient_checkpointing="auto")
    return start(job, folder / "run", Home(folder / "home"))


def loss_of(unet: nn.Module, side: int = 16) -> Tensor:
    source = torch.Generator().manual_seed(1)
    latents, text = torch.randn(2, 4, side, side, generator=source), torch.randn(2, 77, 40, generator=source)
    added = {"text_embeds": torch.ones(2, 24), "time_ids": torch.ones(2, 6)}
    result: Tensor = unet(latents, torch.tensor([300, 600]), text, added_cond_kwargs=added).sample
    return (result**2).mean()


def kept_by(unet: nn.Module, blocks: Blocks) -> int:
    """The bytes that a forward pass keeps: what autograd saves, and the inputs of blocks that are computed twice."""
    weights = {weight.untyped_storage()._cdata for weight in (*unet.parameters(), *unet.buffers())}
    held: list[Tensor] = []

    def hold(module: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        if result.requires_grad:
            held.extend(entry for entry in inputs if isinstance(entry, Tensor))

    def save(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    hooks = [block.register_forward_hook(hold) for block in blocks.twice]
    with saved_tensors_hooks(save, lambda tensor: tensor):
        loss_of(unet)
    for hook in hooks:
        hook.remove()
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in held}
    return sum(size for number, size in storages.items() if number not in weights)


@given(costs=COSTS, share=st.floats(0, 1.2))
def test_the_chosen_blocks_are_enough_and_none_too_many(costs: list[Cost], share: float) -> None:
    total = sum(cost.kept for cost in costs)
    chosen = choose(costs, share * total)
    left = total - sum(costs[number].kept for number in chosen)
    assert left <= share * total
    assert all(left + costs[number].kept > share * total for number in chosen)
    assert len(choose(costs, -1)) == len(costs)


def test_of_like_blocks_the_first_are_chosen_and_the_cheapest_before_all() -> None:
    like = [Cost(10, 5)] * 4
    assert choose(like, 20) == [0, 1]
    assert choose([*like, Cost(20, 5)], 40) == [4]


def test_what_is_foretold_is_kept_whatever_the_budget(adapted: tuple[UNet2DConditionModel, Adapters]) -> None:
    """And each choice has the same loss and gradients, bit for bit."""
    unet, adapters = adapted
    blocks = Blocks(unet, repeats_draws=False)
    before = blocks.order
    fixed, costs = blocks.measure(lambda: loss_of(unet))
    total = sum(cost.kept for cost in costs)
    assert len(costs) == len(before) == 21
    assert set(before) == set(blocks.order)
    results, counts = [], []
    for share in (1.0, 0.75, 0.4, 0.0):
        chosen = choose(costs, share * total)
        blocks.compute_twice(chosen)
        foretold = fixed + total - sum(costs[number].kept for number in chosen)
        assert foretold <= fixed + share * total
        assert kept_by(unet, blocks) == pytest.approx(foretold, rel=0.05)
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
    blocks.compute_twice([])
    assert not unet.is_gradient_checkpointing


def test_blocks_are_measured_in_the_order_of_a_forward_pass(adapted: tuple[UNet2DConditionModel, Adapters]) -> None:
    unet, _ = adapted
    blocks = Blocks(unet, repeats_draws=False)
    blocks.measure(lambda: loss_of(unet))
    names = {module: name for name, module in unet.named_modules()}
    order = [names[block] for block in blocks.order]
    assert order[0] == "down_blocks.0.resnets.0"
    assert order[1:3] == ["down_blocks.1.resnets.0", "down_blocks.1.attentions.0.transformer_blocks.0"]
    assert order[-1].startswith("up_blocks.2.resnets")


def teller(events: Events) -> Report:
    def report(event: str, /, **values: Any) -> None:
        events.append((event, values))

    return report


@pytest.fixture
def run(prepared: Run) -> Any:
    weights = {name: weight.clone() for name, weight in prepared.adapters.state().items()}
    optimizer = copy.deepcopy(prepared.optimizer.state_dict())
    yield prepared
    prepared.adapters.load_state(weights)
    prepared.optimizer.load_state_dict(optimizer)
    prepared.blocks.compute_twice([])
    prepared.job.recipe = prepared.job.recipe.model_copy(update={"gradient_checkpointing": GradientCheckpointing.AUTO})


def test_auto_computes_nothing_twice_on_a_cpu_and_as_much_as_a_gpu_needs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not run.blocks.twice
    before = {name: weight.clone() for name, weight in run.adapters.state().items()}
    batch = run.collator.largest_batch()
    assert [item.placement.bucket for item in batch] == [(64, 64)] * 2
    seen = []
    for room in (0, 2**20, 2**40):
        events, memory = Events(), Memory(8 * GIB + room, 8 * GIB)
        monkeypatch.setattr(step_module, "gpu_memory", lambda *given, memory=memory: memory)
        fit_gpu_memory(run, teller(events))
        seen.append((len(run.blocks.twice), events[-1][1]["message"]))
    assert seen[0][1] == f"{seen[0][0]} of 21 blocks of the UNet are computed twice to fit 8.0 GiB"
    assert seen[0][0] > seen[1][0] >= seen[2][0] == 0
    assert "No block of the UNet has to be computed twice" in seen[2][1]
    assert same(run.adapters.state(), before)
    run.job.recipe.gradient_checkpointing = GradientCheckpointing.ON
    events = Events()
    fit_gpu_memory(run, teller(events))
    assert not events


def test_a_step_without_enough_memory_is_done_again_with_more_blocks_computed_twice(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = {name: weight.clone() for name, weight in run.adapters.state().items()}
    optimizer = copy.deepcopy(run.optimizer.state_dict())
    train_step(run)
    expected = {name: weight.clone() for name, weight in run.adapters.state().items()}
    run.adapters.load_state(begin)
    run.optimizer.load_state_dict(optimizer)
    whole, events = step_module.batch_losses, Events()

    def short(*arguments: Any) -> Tensor:
        losses = whole(*arguments)
        if len(run.blocks.twice) < 15:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return losses

    def never(*arguments: Any) -> Tensor:
        raise torch.OutOfMemoryError("out")

    monkeypatch.setattr(step_module, "batch_losses", short)
    train_step_retrying_oom(run, teller(events))
    assert [values["code"] for _, values in events] == ["memory_short"] * 2
    assert "16 of 21 blocks" in events[-1][1]["message"]
    assert same(run.adapters.state(), expected)
    monkeypatch.setattr(
        step_module, "batch_losses", lambda *arguments: (_ for _ in ()).throw(torch.OutOfMemoryError("out"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        train_step_retrying_oom(run, teller([]))
    assert len(run.blocks.twice) == 21
    run.blocks.compute_twice([])
    run.job.recipe.gradient_checkpointing = GradientCheckpointing.OFF
    with pytest.raises(torch.OutOfMemoryError):
        train_step_retrying_oom(run, teller([]))
    assert not run.blocks.twice


@pytest.mark.parametrize(("written", "meant"), [(True, "on"), (False, "off"), ("auto", "auto"), ("off", "off")])
def test_files_that_say_true_or_false_are_read(written: object, meant: str) -> None:
    assert recipe_of(gradient_checkpointing=written).gradient_checkpointing == meant
