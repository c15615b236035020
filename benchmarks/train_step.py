"""CPU time of a training step of the studio, compared with other loops; all take a step each in turn.

- bare: forward and backward pass of the studio's UNet with its LoRA on fixed inputs, and nothing else
- peft, cached: the loop of diffusers' SDXL LoRA example (without accelerate, which does nothing on one device), with
  peft's layers in the same places as the studio's, and with cached latents and text embeddings
- peft, uncached: the same loop, which reads the image and encodes image and prompt in every step

The model is an SDXL with all its 70 transformer blocks, 57 M weights in the UNet and text encoders of 12 and 32 layers;
128 px, batch 1. Times are CPU time of one thread, the minimum over all steps, as other programs only add to it. With a
CUDA GPU, a table at SDXL's real size follows; --gpu prints only that.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from peft import LoraConfig
from PIL import Image
from torch.nn import functional

from lora_studio.events import Event, StepEvent
from lora_studio.training.loop import train_loop
from lora_studio.training.progress import Progress
from lora_studio.training.samples import encode_prompt
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.gpu_steps import gpu_table
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, start

STEPS = 20
SIDE, DIM = 128, 8
MODEL: dict[str, Any] = {
    "channels": (48, 96, 192),
    "depths": (1, 2, 10),
    "widths": (96, 160),
    "text_layers": (12, 32),
    "vae_channels": (24, 48, 96, 96),
}


@dataclass
class Timed:
    """A step function and the CPU seconds of each of its calls."""

    step: Callable[[], None]
    seconds: list[float] = field(default_factory=list)

    def measure_step(self) -> None:
        """Take a step and record its time."""
        began = time.process_time()
        self.step()
        self.seconds.append(time.process_time() - began)


class PeftLoop:
    """The training loop of diffusers' example, with peft's LoRA layers on the UNet's modules in `targets`."""

    def __init__(self, base: Path, images: Path, targets: list[str], *, cached: bool, checkpointing: bool) -> None:
        self.pipeline = StableDiffusionXLPipeline.from_pretrained(base)
        self.files = sorted(images.glob("*.png"))
        self.unet = self.pipeline.unet
        for model in (self.unet, self.pipeline.vae, self.pipeline.text_encoder, self.pipeline.text_encoder_2):
            model.requires_grad_(False)
        self.unet.add_adapter(LoraConfig(r=DIM, lora_alpha=DIM, init_lora_weights="gaussian", target_modules=targets))
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.unet.train()
        self.weights = [weight for weight in self.unet.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4, weight_decay=1e-2)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self.noise_scheduler = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        self.cache = [self.encode(file) for file in self.files] if cached else None
        self.steps = 0

    @torch.no_grad()
    def encode(self, file: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return latents, text embeddings and pooled embeddings of an image and its caption."""
        pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1
        latents = self.pipeline.vae.encode(pixels).latent_dist.sample() * self.pipeline.vae.config.scaling_factor
        prompt = file.with_suffix(".txt").read_text("utf-8")
        hidden, _, pooled, _ = self.pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
        return latents, hidden, pooled

    def step(self) -> None:
        """Take an optimizer step on one image."""
        number = self.steps % len(self.files)
        latents, hidden, pooled = self.cache[number] if self.cache else self.encode(self.files[number])
        noise = torch.randn_like(latents)
        t = torch.randint(0, self.noise_scheduler.config.num_train_timesteps, (len(latents),))
        sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]])
        prediction = self.unet(
            self.noise_scheduler.add_noise(latents, noise, t),
            t,
            hidden,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
        loss = functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        loss.item()
        self.steps += 1


def bare_step(trainer: Trainer) -> Callable[[], None]:
    """Return a function that runs forward and backward of the run's UNet on fixed inputs, and adds to the gradients."""
    source = torch.Generator().manual_seed(0)
    text = encode_prompt("inkstamp", trainer)
    latents, target = (torch.randn((1, 4, SIDE // 8, SIDE // 8), generator=source) for _ in range(2))
    t = torch.tensor([300])
    added = {"text_embeds": text.pooled, "time_ids": torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]])}

    def step() -> None:
        prediction = trainer.base.unet(
            latents, t, encoder_hidden_states=text.hidden, added_cond_kwargs=added, return_dict=False
        )[0]
        functional.mse_loss(prediction, target).backward()

    return step


def measure(folder: Path, *, checkpointing: bool) -> dict[str, float]:
    """Return the CPU seconds per step of each loop."""
    base = save_tiny_sdxl(folder / "base", **MODEL)
    images = make_images(folder / "images", [(SIDE, SIDE)] * 8)
    job = make_job(
        base,
        images,
        resolution=SIDE,
        batch_size=1,
        network_dim=DIM,
        network_alpha=DIM,
        epochs=1000,
        repeats=100,
        gradient_checkpointing=checkpointing,
    )
    trainer = start(job, folder / "run", Home(folder / "home"))
    targets = [path for _, path, _ in trainer.adapters.layers]
    bare = Timed(bare_step(trainer))
    others = {
        "peft, cached": Timed(PeftLoop(base, images, targets, cached=True, checkpointing=checkpointing).step),
        "peft, uncached": Timed(PeftLoop(base, images, targets, cached=False, checkpointing=checkpointing).step),
    }
    events = JobFolder(folder / "run")
    ours = Timed(lambda: None)
    entered = time.process_time()

    def report(event: Event) -> None:
        nonlocal entered
        events.emit(event)
        if isinstance(event, StepEvent):
            ours.seconds.append(time.process_time() - entered)
            bare.measure_step()
            for other in others.values():
                other.measure_step()
        entered = time.process_time()

    (folder / "run").mkdir(exist_ok=True)
    train_loop(trainer, Progress(), report=report, should_stop=lambda: len(ours.seconds) >= STEPS)
    return {name: min(timed.seconds) for name, timed in {"studio": ours, "bare": bare, **others}.items()}


def main() -> None:
    if "--gpu" not in sys.argv[1:]:
        on_cpu()
    gpu_table()


def on_cpu() -> None:
    torch.set_num_threads(1)
    for checkpointing in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), checkpointing=checkpointing)
        print(f"gradient checkpointing {'on' if checkpointing else 'off'}:")
        for name, seconds in found.items():
            share = f", {seconds / found['studio']:.2f} times the studio's" if name != "studio" else ""
            print(f"  {name}: {seconds * 1e3:.0f} ms of CPU time per step{share}")
        print(f"  the studio over bare: {found['studio'] / found['bare']:.3f}")


if __name__ == "__main__":
    main()
