"""The cost of a strength grid: CPU time of 7 strengths over 7 bare pipeline calls, and over fusing for each strength.

The grid is the real one, with its PNG files and grid.png, on the embedded base, with the base loaded for all sides. The
bare side calls diffusers' pipeline with the prompt as text and saves nothing. The other two sides do what a script does
with diffusers for every strength: `load_lora_weights` and `fuse_lora`, then the call, then `unfuse_lora`; and
`set_adapters` on a LoRA that is loaded once. Rounds are interleaved, and the median of each side is taken.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from lora_studio.events import Event
from lora_studio.sampling import sweep as sweep_module
from lora_studio.sampling.pipeline import SamplingPipeline, load_sampling_pipeline
from lora_studio.sampling.sweep import sweep
from lora_studio.settings.choices import Precision
from lora_studio.settings.job_specs import SweepJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.kohya_lora import make_lora, save_lora

STRENGTHS = [0.0, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]
PROMPT, STEPS, GUIDANCE, SEED, ROUNDS = "inkstamp_hc, apple", 15, 6.0, 42, 3


def bare(pipeline: SamplingPipeline) -> None:
    for _ in STRENGTHS:
        _call(pipeline)


def grid(pipeline: SamplingPipeline, lora: Path, folder: Path) -> None:
    job = SweepJob(
        loras=[lora],
        bases=["embedded"],
        prompts=[PROMPT],
        strengths=STRENGTHS,
        steps=STEPS,
        guidance=GUIDANCE,
        seed=SEED,
    )
    with mock.patch.object(sweep_module, "load_sampling_pipeline", return_value=pipeline):
        sweep(job, JobFolder(folder), home=Home(folder), report=_silent, should_stop=lambda: False)


def fused(pipeline: SamplingPipeline, lora: Path) -> None:
    pipe = pipeline.pipe
    for strength in STRENGTHS:
        if strength:
            pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
            pipe.fuse_lora(lora_scale=strength)
        _call(pipeline)
        if strength:
            pipe.unfuse_lora()
            pipe.unload_lora_weights()


def set_adapters(pipeline: SamplingPipeline, lora: Path) -> None:
    pipe = pipeline.pipe
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name, adapter_name="ink")
    for strength in STRENGTHS:
        pipe.set_adapters(["ink"], [strength])
        _call(pipeline)
    pipe.unload_lora_weights()


def _call(pipeline: SamplingPipeline) -> None:
    side = pipeline.base.native_resolution
    pipeline.pipe(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        width=side,
        height=side,
        generator=torch.Generator("cpu").manual_seed(SEED),
    )


def _silent(event: Event) -> None:
    pass


def _cpu_seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline = load_sampling_pipeline("embedded", home=Home(folder), precision=Precision.FP32)
        lora = save_lora(make_lora(pipeline.pipe, sgm=False)[0], folder / "ink.safetensors")
        sides: dict[str, Callable[[int], None]] = {
            "bare calls": lambda round: bare(pipeline),
            "grid": lambda round: grid(pipeline, lora, folder / f"sweep {round}" / "001"),
            "fuse per strength": lambda round: fused(pipeline, lora),
            "set_adapters": lambda round: set_adapters(pipeline, lora),
        }
        _call(pipeline)
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(ROUNDS):
            for side, work in sides.items():
                seconds[side].append(_cpu_seconds(lambda work=work, number=number: work(number)))  # type: ignore[misc]
    median = {side: statistics.median(values) for side, values in seconds.items()}
    for side, value in median.items():
        print(f"{side}: {value:.2f} s ({', '.join(f'{one:.2f}' for one in seconds[side])})")
    for side in ("bare calls", "fuse per strength", "set_adapters"):
        print(f"grid over {side}: {median['grid'] / median[side]:.2f}")


if __name__ == "__main__":
    main()
