"""The gain of keeping the base in memory: CPU time per cell of a sweep, over loading base and LoRA for each cell.

The sweep is the real one, with its PNG files and grid; the other side does what a script without it would do for every
strength: load the base, load the LoRA, set the strength, sample, save.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from lora_studio.events import Event
from lora_studio.lora.header import read_lora_header
from lora_studio.sampling.adapter import apply_lora
from lora_studio.sampling.pipeline import load_sampling_pipeline
from lora_studio.sampling.sweep import sweep
from lora_studio.settings.choices import Precision
from lora_studio.settings.job_specs import SweepJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.kohya_lora import make_lora, save_lora
from tests.support.tiny_sdxl import save_tiny_sdxl

STRENGTHS = [0.7, 0.8, 0.9, 1.0, 1.1, 1.2]
PROMPT, STEPS, GUIDANCE, SEED, SIDE = "inkstamp, round", 10, 5.0, 7, 64


def reload_each(base: Path, lora: Path, folder: Path) -> float:
    """Return CPU seconds per image when base and LoRA are loaded for each."""
    began = time.process_time()
    for strength in STRENGTHS:
        pipeline = load_sampling_pipeline(str(base), home=Home(folder), precision=Precision.FP32)
        with apply_lora(pipeline.pipe, read_lora_header(lora)) as adapter:
            adapter.set_strength(strength)
            prompt, negative = pipeline.encode(PROMPT, clip_skip=2), pipeline.encode_negative("", clip_skip=2)
            picture = pipeline.generate(
                prompt, negative, seed=SEED, steps=STEPS, guidance=GUIDANCE, width=SIDE, height=SIDE
            )
        assert picture is not None
        picture.save(folder / f"{strength}.png")
    return (time.process_time() - began) / len(STRENGTHS)


def one_sweep(base: Path, lora: Path, folder: Path) -> float:
    """Return CPU seconds per cell of a sweep, including loading the base and drawing the grid."""
    job = SweepJob(
        loras=[lora],
        bases=[str(base)],
        prompts=[PROMPT],
        strengths=STRENGTHS,
        steps=STEPS,
        guidance=GUIDANCE,
        seed=SEED,
        mixed_precision=Precision.FP32,
    )
    began = time.process_time()
    sweep(job, JobFolder(folder / "sweep"), home=Home(folder), report=_silent, should_stop=lambda: False)
    return (time.process_time() - began) / len(STRENGTHS)


def _silent(event: Event) -> None:
    pass


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = save_tiny_sdxl(folder / "base", channels=(64, 128, 128))
        pipeline = load_sampling_pipeline(str(base), home=Home(folder), precision=Precision.FP32)
        lora = save_lora(make_lora(pipeline.pipe)[0], folder / "ink.safetensors")
        one_sweep(base, lora, folder / "warm up")
        reloading, swept = reload_each(base, lora, folder), one_sweep(base, lora, folder)
    print(f"reloading {reloading:.3f} s, sweep {swept:.3f} s of CPU time per cell: {swept / reloading:.2f} times")


if __name__ == "__main__":
    main()
