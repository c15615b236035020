"""The training loop of all models of the pack: resumable, seeded, by steps or minutes, with EMA weights."""

import dataclasses
import json
import math
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CHECKPOINT_SECONDS = 60.0
LOG_SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class Length:
    """The length of a stage: a number of steps, or minutes of wall clock, counted over all resumes."""

    steps: int | None = None
    minutes: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Length":
        """Parse `40m` as 40 minutes and `3000` as 3,000 steps."""
        if text.endswith("m"):
            return cls(minutes=float(text[:-1]))
        return cls(steps=int(text))

    def share(self, step: int, seconds: float) -> float:
        """Return the share of the stage that is done, 0 to 1."""
        if self.steps is not None:
            return min(1.0, step / max(1, self.steps))
        assert self.minutes is not None
        return min(1.0, seconds / max(1e-9, 60 * self.minutes))


@dataclasses.dataclass(frozen=True)
class StepRng:
    """The random generators of a step, seeded by seed, stage and step only, so that a resumed run repeats them.

    `share` of the stage is done, 0 to 1.
    """

    step: int
    share: float
    python: random.Random
    torch: torch.Generator

    @classmethod
    def of(cls, seed: int, stage: str, step: int, share: float) -> "StepRng":
        """Return the generators of step `step` of a stage."""
        python = random.Random(f"{seed}/{stage}/{step}")
        return cls(step, share, python, torch.Generator().manual_seed(python.getrandbits(62)))

    def normal(self, like: Tensor) -> Tensor:
        """Return normal noise with the shape and device of `like`."""
        return torch.randn(like.shape, generator=self.torch).to(like.device)

    def integers(self, high: int, count: int) -> Tensor:
        """Return `count` integers from 0 up to `high`, exclusive."""
        return torch.randint(high, (count,), generator=self.torch)

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers from 0 to 1."""
        return torch.rand(shape, generator=self.torch)


def log(message: str) -> None:
    """Print a line with the time of day on stderr."""
    print(time.strftime("%H:%M:%S"), message, file=sys.stderr, flush=True)


def save_atomic(value: object, path: Path) -> None:
    """Save with torch.save through a temporary file, so that a reader never sees half a file."""
    part = path.with_suffix(path.suffix + ".part")
    torch.save(value, part)
    part.replace(path)


def write_json(value: object, path: Path) -> None:
    """Write indented JSON through a temporary file."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def autocast(device: str) -> torch.autocast:
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def ema_weights(name: str, work: Path) -> dict[str, dict[str, Tensor]] | None:
    """Return the EMA weights in a stage's checkpoint, by module; None if it has no checkpoint."""
    path = work / f"{name}.ckpt"
    if not path.exists():
        return None
    weights: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True, map_location="cpu")["ema"]
    return weights


def adopt(name: str, weights: Mapping[str, Mapping[str, Tensor]], work: Path) -> None:
    """Write a first checkpoint with the given weights by module, from which a stage continues."""
    given = {module: {k: v.float() for k, v in state.items()} for module, state in weights.items()}
    save_atomic({"weights": given, "ema": given, "optimizer": None, "step": 0, "seconds": 0.0}, work / f"{name}.ckpt")


def finished(name: str, work: Path) -> bool:
    return (work / f"{name}.done.json").exists()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def train(
    name: str,
    modules: Mapping[str, nn.Module],
    loss_of: Callable[[StepRng], tuple[Tensor, dict[str, float]]],
    *,
    work: Path,
    length: Length,
    seed: int,
    lr: float,
    weight_decay: float = 0.01,
    warmup: int = 100,
    ema_decay: float = 0.999,
    preview: Callable[[], None] | None = None,
    preview_minutes: float = 8.0,
) -> None:
    """Train `modules` with AdamW and a cosine schedule for `length`; afterwards they have the EMA weights.

    `loss_of` maps a step's random generators to a loss and figures for the log. A checkpoint is written every minute,
    and a later call resumes from it. `preview` is called every `preview_minutes` with the EMA weights in place. The
    state is weights, EMA, optimizer, step and seconds: random numbers depend only on the step.
    """
    params = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True)
    path, step, spent = work / f"{name}.ckpt", 0, 0.0
    ema = {key: {k: v.detach().clone() for k, v in m.state_dict().items()} for key, m in modules.items()}
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=params[0].device)
        for key, module in modules.items():
            module.load_state_dict(state["weights"][key])
        if state["optimizer"] is not None:  # None after `adopt`
            optimizer.load_state_dict(state["optimizer"])
        ema, step, spent = state["ema"], state["step"], state["seconds"]
        log(f"{name}: resumed at step {step}, {_clock(spent)} in")

    def save() -> None:
        weights = {key: module.state_dict() for key, module in modules.items()}
        state = {"weights": weights, "ema": ema, "optimizer": optimizer.state_dict(), "step": step, "seconds": spent}
        save_atomic(state, path)

    def show_preview() -> None:
        if preview is None:
            return
        kept = {key: {k: v.clone() for k, v in m.state_dict().items()} for key, m in modules.items()}
        for key, module in modules.items():
            module.load_state_dict(ema[key])
            module.eval()
        with torch.no_grad():
            preview()
        for key, module in modules.items():
            module.load_state_dict(kept[key])
            module.train()

    for module in modules.values():
        module.train()
    mean: dict[str, float] = {}
    last = logged = saved = previewed = time.monotonic()
    while (share := length.share(step, spent)) < 1:
        rate = lr * min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * share)) + lr * 1e-3
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, figures = loss_of(StepRng.of(seed, name, step, share))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        step += 1
        decay = min(ema_decay, (1 + step) / (10 + step))
        for key, module in modules.items():
            now_state, average = module.state_dict(), ema[key]
            floats = [k for k, v in now_state.items() if v.is_floating_point()]
            torch._foreach_lerp_([average[k] for k in floats], [now_state[k] for k in floats], 1 - decay)
        for figure, value in {"loss": loss.item(), **figures}.items():
            mean[figure] = value if figure not in mean else 0.98 * mean[figure] + 0.02 * value
        now = time.monotonic()
        spent, last = spent + now - last, now
        if now - logged > LOG_SECONDS:
            logged = now
            left = spent * (1 - share) / max(share, 1e-6)
            figures_text = " ".join(f"{figure} {value:.4f}" for figure, value in mean.items())
            log(f"{name}: {share:6.1%} step {step} {step / spent:.2f}/s {figures_text} left {_clock(left)}")
        if now - saved > CHECKPOINT_SECONDS:
            save()
            saved = now
        if now - previewed > 60 * preview_minutes:
            show_preview()
            previewed = last = time.monotonic()
    save()
    for key, module in modules.items():
        module.load_state_dict(ema[key])
        module.eval()
    with torch.no_grad():
        if preview is not None:
            preview()
    write_json({"steps": step, "minutes": round(spent / 60, 1), **mean}, work / f"{name}.done.json")
    log(f"{name}: done, {step} steps in {_clock(spent)}")
