"""The studio at SDXL's real size, on a CPU and offline: a 7 GB single-file checkpoint, two steps, a LoRA file.

The checkpoint has the shapes and key names of a downloaded SDXL 1.0 file (Stability's layout), with random weights in
bf16: `python -m benchmarks.real_size SCRATCH_FOLDER`. It is written tensor by tensor, used as the base of two training
steps at 256 px, and removed at the end; the LoRA is then loaded in diffusers.
"""

from __future__ import annotations

import gc
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_studio import worker
from lora_studio.events import StepEvent
from lora_studio.models.locate import SDXL_CONFIG
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.original_layout import original_tensors
from tests.support.training_runs import make_images, make_job

LIMIT_GIB = 20
STEPS, SIDE = 2, 256
BLOCK = 2**24  # random numbers that are drawn once; each tensor starts at another offset in them


def layout() -> dict[str, torch.Tensor]:
    """Return every tensor of an SDXL checkpoint by name, on the meta device."""

    def config(part: str) -> dict[str, Any]:
        return dict(json.loads((SDXL_CONFIG / part / "config.json").read_text("utf-8")))

    with torch.device("meta"):
        parts = SimpleNamespace(
            unet=UNet2DConditionModel.from_config(config("unet")),
            vae=AutoencoderKL.from_config(config("vae")),
            text_encoder=CLIPTextModel(CLIPTextConfig(**config("text_encoder"))),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**config("text_encoder_2"))),
        )
        return original_tensors(parts)


def write_checkpoint(file: Path) -> int:
    """Write the checkpoint with one tensor in memory at a time; return its number of weights.

    Norms are 1, biases 0, other weights normal with variance 1 / inputs, so that activations keep their scale.
    """
    tensors = layout()
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    source = torch.Generator().manual_seed(0)
    block = torch.randn(BLOCK, generator=source)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            if tensor.ndim < 2:
                values = torch.full(tensor.shape, 0.0 if name.endswith("bias") else 1.0)
            else:
                start = int(torch.randint(BLOCK, (1,), generator=source))
                copies = -(-(start + tensor.numel()) // BLOCK)
                values = block.repeat(copies)[start : start + tensor.numel()] / math.sqrt(tensor[0].numel())
            stream.write(memoryview(values.bfloat16().view(torch.uint8).numpy()))
    return offset // 2


def train(checkpoint: Path, folder: Path) -> Path:
    """Train two steps from the single file, in an ordinary job folder; return the LoRA's path."""
    images = make_images(folder / "images", [(SIDE, SIDE)] * STEPS)
    job = make_job(
        checkpoint, images, resolution=SIDE, bucket_reso_steps=64, batch_size=1, epochs=1, mixed_precision="bf16"
    )
    run = JobFolder.create(folder / "run", job)
    worker.execute(run, home=Home(folder / "home"))
    steps = [event for event in run.events()[0] if isinstance(event, StepEvent)]
    print("losses", *(f"{event.loss:.4f}" for event in steps), "| seconds", *(event.seconds for event in steps))
    assert len(steps) == STEPS
    return run.path / "ink.safetensors"


def load_in_diffusers(checkpoint: Path, lora: Path) -> tuple[int, int]:
    """Load base and LoRA in diffusers; return the number of layers in the file and of those that it changes there."""
    pipe = StableDiffusionXLPipeline.from_single_file(
        str(checkpoint), config=str(SDXL_CONFIG), torch_dtype=torch.bfloat16, local_files_only=True
    )
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name, local_files_only=True)
    layers = [layer for layer in pipe.unet.modules() if isinstance(layer, LoraLayer)]
    with safe_open(lora, "pt") as file:
        modules = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118
    return len(modules), sum(all(part.weight.any() for part in layer.lora_B.values()) for layer in layers)


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) != 2:
        sys.exit("Give an empty folder with 16 GB of room: python -m benchmarks.real_size FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)  # fails if it exists, so no file is overwritten
    checkpoint = folder / "sdxl.safetensors"
    begun, spent = time.monotonic(), time.process_time()

    def timed(what: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.monotonic(), time.process_time()
        result = work()
        gc.collect()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of the process so far
        print(
            f"{what}: {time.process_time() - cpu:.0f} s of CPU time, {time.monotonic() - wall:.0f} s in all, "
            f"peak {peak:.1f} GiB",
            flush=True,
        )
        return result

    try:
        weights = timed("checkpoint", lambda: write_checkpoint(checkpoint))
        lora = timed("training", lambda: train(checkpoint, folder))
        layers, changed = timed("diffusers", lambda: load_in_diffusers(checkpoint, lora))
    finally:
        checkpoint.unlink(missing_ok=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu, wall = time.process_time() - spent, time.monotonic() - begun
    print(f"{weights:,} weights; {changed} of the LoRA's {layers} layers change diffusers' UNet")
    print(
        f"{cpu:.0f} s of CPU time, {wall:.0f} s in all, peak {peak:.1f} GiB: {peak / LIMIT_GIB:.2f} of {LIMIT_GIB} GiB"
    )
    assert changed == layers
    assert peak < LIMIT_GIB


if __name__ == "__main__":
    main()
