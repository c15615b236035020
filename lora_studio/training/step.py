"""One optimizer step: forward, loss and backward of its micro-batches, then all-reduce, gradient clipping, update.

Nothing here waits for the GPU, except where an optimizer needs to know on the CPU whether the loss is finite: fused
AdamW reads that on the GPU. What a step measured stays on the device until `StepResult.read`, so that the loop can
launch the next step first.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lora_studio.device import warn_if_out_of_memory
from lora_studio.events import PhaseEvent, Report, WarningEvent
from lora_studio.models.text_encoding import encode_tokens
from lora_studio.settings.choices import GradientCheckpointing
from lora_studio.training.data.batch import BatchTensors, StepBatches
from lora_studio.training.data.dataset import epoch_steps
from lora_studio.training.objective import sample_losses
from lora_studio.training.optim.optimizers import learning_rates
from lora_studio.training.reporting.step_log import StepResult
from lora_studio.training.run import Run
from lora_studio.training.speed.cuda_graph_capture import find_capturer
from lora_studio.training.speed.cuda_graph_policy import CudaGraphs
from lora_studio.training.speed.memory_budget import fit_recomputed_blocks, measure_step_memory


def train_step(run: Run) -> StepResult:
    """Take one optimizer step over its micro-batches.

    Every sample has the same weight, also in a smaller batch or accumulation group. A step whose loss or gradient is
    not finite leaves the weights unchanged; with fp16 an infinite gradient first only lowers the loss scale.
    """
    with run.ranks.sync_errors():
        inputs = run.prefetch.get(run.step, run.counts.total_steps, run.collator.collate_step)
        losses = _accumulate_gradients(run, inputs)
    run.ranks.all_reduce([losses, *run.weights.gradients])
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.weights.flat, run.job.recipe.max_grad_norm or math.inf)
    timesteps = run.collator.timesteps(run.step, 0, inputs.sample_count)
    result = StepResult(learning_rates(run.optimizer), timesteps, torch.cat([norm.to(run.device).view(1), losses]))
    update = _update_without_sync if run.updates_without_sync else _update_if_finite
    update(run, result)
    with warnings.catch_warnings():
        # torch suspects a mistake if the very first step was skipped
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        run.lr_scheduler.step()
    return result


def batch_losses(run: Run, batch: BatchTensors) -> Tensor:
    """Return the weighted loss [B] of each sample of a batch that is on the run's device.

    It never waits for the device, and all that differs between two batches of the same shape is in their tensors: so it
    can be captured in a CUDA graph.
    """
    recipe = run.job.recipe
    with run.autocast():
        hidden, pooled = batch.hidden, batch.pooled
        if batch.tokens is not None:
            hidden, pooled = encode_tokens(run.base.text_encoders, batch.tokens, recipe.clip_skip)
        prediction: Tensor = run.base.unet(
            batch.noisy,
            batch.t,
            encoder_hidden_states=hidden,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": batch.time_ids},
            return_dict=False,
        )[0]
    losses = sample_losses(
        prediction, batch.target, loss_type=recipe.loss_type, thresholds=batch.thresholds, mask=batch.masks
    )
    return losses * batch.weights


def forward_backward(run: Run, batch: BatchTensors, sample_count: Tensor) -> Tensor:
    """Return the losses [B] of a batch on the run's device, after adding its gradients to those of the step.

    `sample_count` [] is the number of samples of the whole step, over which the loss is averaged.
    """
    losses = batch_losses(run, batch)
    run.scaler.scale(losses.sum() / sample_count).backward()
    run.weights.accumulate_gradients()
    return losses.detach()


def _accumulate_gradients(run: Run, inputs: StepBatches) -> Tensor:
    """Accumulate the gradients of this rank's micro-batches; return [1 + N], their part of the mean and sample losses.

    If a CUDA graph fails, do all micro-batches again without graphs.
    """
    while True:
        try:
            return _accumulate_once(run, inputs)
        except RuntimeError as error:
            if run.cuda_graphs is None or not run.cuda_graphs.disable_after(error):
                raise


def _accumulate_once(run: Run, inputs: StepBatches) -> Tensor:
    losses = torch.zeros(inputs.sample_count, device=run.device)
    sample_count = torch.full((), float(inputs.sample_count), device=run.device)
    run.weights.zero_gradients()
    if run.cuda_graphs is not None:
        run.cuda_graphs.update([batch for _, batch in inputs.batches], sample_count)
    for first, batch in inputs.batches:
        with run.seeded_dropout(first):
            if run.cuda_graphs is not None:
                found = run.cuda_graphs.run(batch, sample_count)
            else:
                found = forward_backward(run, batch.to(run.device), sample_count)
        losses[first : first + len(found)] = found
    return torch.cat([(losses.sum() / sample_count).view(1), losses])


def _update_if_finite(run: Run, result: StepResult) -> None:
    """Update the weights if the loss and gradient are finite, after waiting for the device."""
    gradient_norm, loss, *_ = result.measured.tolist()
    rescaling = run.scaler.is_enabled() and run.scaler.get_scale() >= 1
    result.valid = math.isfinite(loss) and (math.isfinite(gradient_norm) or rescaling)
    if result.valid:
        run.updating = True
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.weights.sync_half_copies()
        run.averaged_weights.update()
        run.updating = False
    elif run.scaler.is_enabled():
        run.scaler.update()


def _update_without_sync(run: Run, result: StepResult) -> None:
    """Update the weights with an optimizer that skips non-finite steps on the device, as it does for a GradScaler."""
    run.updating = True
    run.optimizer.found_inf = (~result.measured[:2].isfinite()).any().float()  # type: ignore[attr-defined]
    run.optimizer.step()
    run.weights.sync_half_copies()
    run.updating = False


def train_step_with_oom_retry(run: Run, report: Report) -> StepResult:
    """Take a step; on out of memory, retry it with more blocks recomputed if gradient checkpointing is `auto`.

    The weights are unchanged before a retry. Raises torch.OutOfMemoryError when every block is recomputed already.
    """
    auto = run.job.recipe.gradient_checkpointing is GradientCheckpointing.AUTO and run.ranks.world_size == 1
    checkpointing = run.block_checkpointing
    while True:
        try:
            return train_step(run)
        except torch.OutOfMemoryError:
            if run.updating or not auto or not checkpointing.recompute_more():
                raise
        run.weights.zero_gradients()
        torch.cuda.empty_cache()
        report(
            WarningEvent(
                code="memory_short",
                message="A step ran out of GPU memory. Gradient checkpointing now covers "
                f"{len(checkpointing.recomputed)} of {len(checkpointing.blocks)} UNet blocks.",
            )
        )


def fit_gpu_memory(run: Run, report: Report) -> None:
    """If gradient checkpointing is `auto`, recompute as few UNet blocks as the GPU's memory allows.

    A forward and backward pass of the largest batch is measured; weights stay unchanged.
    """
    if run.job.recipe.gradient_checkpointing is not GradientCheckpointing.AUTO:
        return
    report(PhaseEvent(message="Measuring the memory of a step"))
    batch = run.collator.collate(0, run.collator.largest_batch(), 0).to(run.device)

    def forward() -> Tensor:
        with run.seeded_dropout(0):
            return batch_losses(run, batch)

    measure = partial(measure_step_memory, forward, run.weights, run.optimizer, run.job.recipe, run.device)
    with warn_if_out_of_memory(
        report, "measure_out_of_memory", "Memory ran out while measuring a step: all UNet blocks are recomputed."
    ):
        fit_recomputed_blocks(run.block_checkpointing, run.base.text_encoders, forward, measure, run.weights, report)


def cuda_graphs_for(run: Run, report: Report) -> CudaGraphs | None:
    """Return the CUDA graphs of a run; None where its device has none or a replay could be wrong.

    A replay repeats the same kernels on the same memory. So there are none with network dropout (random numbers), with
    weights whose gradients autograd allocates, with a gradient scaler, or on several ranks.
    """
    capturer = find_capturer(run.device)
    safe = run.weights.all_fused and not run.job.recipe.network_dropout and not run.scaler.is_enabled()
    if capturer is None or not safe or run.ranks.world_size > 1:
        return None
    return CudaGraphs(partial(forward_backward, run), capturer, run.weights, batches_left(run), report)


def batches_left(run: Run) -> Callable[[BatchTensors, bool], int]:
    """Return a function that estimates how many batches of the same shape are still to come.

    Its arguments are a batch, and True to count to the end of this epoch instead of the run.
    """
    per_epoch = run.counts.steps_per_epoch
    batches = [batch for step in epoch_steps(run.dataset, run.job.recipe, 0) for batch in step]
    factor = run.base.latent_factor
    # every epoch has the same batch shapes, in another order
    counts = Counter((len(batch), *(side // factor for side in batch[0].placement.bucket)) for batch in batches)

    def left(batch: BatchTensors, this_epoch: bool) -> int:
        count, _, height, width = batch.noisy.shape
        steps = per_epoch - run.step % per_epoch if this_epoch else run.counts.total_steps - run.step
        return round(counts[count, width, height] * min(steps, run.counts.total_steps - run.step) / per_epoch)

    return left
