"""What the training loop costs beside the arithmetic: a step of ours over the bare forward, backward and optimizer.

Both work on the same adapted UNet with the same optimizer, a step of each in turn, so that whatever else the machine
does falls on both. The bare step gets everything ready-made: no data, noise, targets, clipping, schedule or events.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lora_studio.project import Home
from lora_studio.runs import JobFolder
from lora_studio.training.loop import Run, train_loop
from tests.tiny_sdxl import save_tiny_sdxl
from tests.training_runs import make_images, make_job, start

WARM_UP, STEPS = 5, 40
SIDE, BATCH = 128, 2


def bare_step(run: Run) -> Callable[[], None]:
    """A step of forward, backward and optimizer on inputs that are made once."""
    source = torch.Generator().manual_seed(0)
    text = run.encode(["inkstamp"] * BATCH)
    latents, target = (torch.randn((BATCH, 4, SIDE // 8, SIDE // 8), generator=source) for _ in range(2))
    t = torch.tensor([300, 700])
    added = {"text_embeds": text.pooled, "time_ids": torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * BATCH)}

    def step() -> None:
        answer = run.base.unet(
            latents, t, encoder_hidden_states=text.hidden, added_cond_kwargs=added, return_dict=False
        )[0]
        torch.nn.functional.mse_loss(answer, target).backward()
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)

    return step


def measure(folder: Path) -> tuple[float, float]:
    """Median seconds of CPU time of a step of the loop, and of a bare step."""
    base = save_tiny_sdxl(folder / "base", channels=(64, 128, 128))
    images = make_images(folder / "images", [(SIDE, SIDE)] * 8)
    job = make_job(base, images, resolution=SIDE, batch_size=BATCH, network_dim=8, epochs=1000)
    run = start(job, folder / "run", Home(folder / "home"))
    events = JobFolder(folder / "run")
    bare = bare_step(run)
    ours: list[float] = []
    theirs: list[float] = []
    entered = time.process_time()

    def report(event: str, /, **values: Any) -> None:
        nonlocal entered
        events.emit(event, **values)
        if event == "step":
            ours.append(time.process_time() - entered)
            began = time.process_time()
            bare()
            theirs.append(time.process_time() - began)
        entered = time.process_time()

    (folder / "run").mkdir(exist_ok=True)
    train_loop(run, report=report, should_stop=lambda: events.stop_requested() or len(ours) >= WARM_UP + STEPS)
    return statistics.median(ours[WARM_UP:]), statistics.median(theirs[WARM_UP:])


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = measure(Path(folder))
    print(f"loop {ours * 1e3:.1f} ms, bare {theirs * 1e3:.1f} ms of CPU time a step: {ours / theirs:.2f} times")


if __name__ == "__main__":
    main()
