"""Steps of every optimizer on a two-layer model, against reference implementations of the papers in this file."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.optimizers import load_optimizer_state, make_optimizer

Array = NDArray[np.float64]
Gradients = Callable[[list[Array]], list[Array]]
Reference = Callable[[list[Array], Gradients, float, float, int], list[Array]]

RATE, DECAY, STEPS = 0.01, 0.05, 3


class TwoLayers(nn.Module):
    """y = B tanh(A x): a LoRA with a non-linearity between its matrices; 4096 weights in each."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(5)
        self.first = nn.Parameter(0.1 * torch.randn(64, 64, generator=source))
        self.second = nn.Parameter(0.1 * torch.randn(64, 64, generator=source))
        self.given = torch.randn(16, 64, generator=source)
        self.wanted = torch.randn(16, 64, generator=source)

    def loss(self) -> Tensor:
        return (torch.tanh(self.given @ self.first.T) @ self.second.T - self.wanted).square().mean()


def numpy_gradients(model: TwoLayers) -> Gradients:
    """Return the gradients of `TwoLayers.loss`, derived by hand."""
    x, y = model.given.double().numpy(), model.wanted.double().numpy()

    def gradients(weights: list[Array]) -> list[Array]:
        first, second = weights
        hidden = np.tanh(x @ first.T)
        error = 2 * (hidden @ second.T - y) / y.size
        return [((error @ second) * (1 - hidden**2)).T @ x, error.T @ hidden]

    return gradients


def train(recipe: Recipe, steps: int = STEPS) -> tuple[TwoLayers, torch.optim.Optimizer, list[Array]]:
    model = TwoLayers()
    weights = [model.first, model.second]
    start = [weight.detach().double().numpy().copy() for weight in weights]
    rate = recipe.unet_lr
    optimizer = make_optimizer(recipe, [{"name": "unet", "params": weights, "lr": rate}])
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
    return model, optimizer, start


def adamw(weights: list[Array], gradients: Gradients, rate: float, decay: float, steps: int) -> list[Array]:
    """Loshchilov and Hutter 2019, algorithm 2."""
    m, v = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for t in range(1, steps + 1):
        for i, g in enumerate(gradients(weights)):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            step = m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
            weights[i] = weights[i] - rate * step - rate * decay * weights[i]
    return weights


def adafactor(weights: list[Array], gradients: Gradients, rate: float, decay: float, steps: int) -> list[Array]:
    """Shazeer and Stern 2018, algorithm 4, with an external learning rate and no momentum."""
    rows, columns = [np.zeros(64), np.zeros(64)], [np.zeros(64), np.zeros(64)]
    for t in range(1, steps + 1):
        keep = 1 - t**-0.8
        for i, g in enumerate(gradients(weights)):
            square = g**2 + 1e-30
            rows[i] = keep * rows[i] + (1 - keep) * square.mean(1)
            columns[i] = keep * columns[i] + (1 - keep) * square.mean(0)
            step = g / np.sqrt(np.outer(rows[i], columns[i]) / rows[i].mean())
            step = step / max(1.0, math.sqrt((step**2).mean()))
            weights[i] = weights[i] - rate * step - rate * decay * weights[i]
    return weights


def came(weights: list[Array], gradients: Gradients, rate: float, decay: float, steps: int) -> list[Array]:
    """Luo et al. 2023, algorithm 2."""

    def average(kept: list[Array], values: Array, beta: float) -> Array:
        kept[0] = beta * kept[0] + (1 - beta) * values.mean(1)
        kept[1] = beta * kept[1] + (1 - beta) * values.mean(0)
        return np.sqrt(np.outer(kept[0], kept[1]) / kept[0].mean())

    squares, residuals = [[np.zeros(64)] * 2 for _ in weights], [[np.zeros(64)] * 2 for _ in weights]
    m = [np.zeros_like(w) for w in weights]
    for _ in range(steps):
        for i, g in enumerate(gradients(weights)):
            step = g / average(squares[i], g**2 + 1e-30, 0.999)
            step = step / max(1.0, math.sqrt((step**2).mean()))
            m[i] = 0.9 * m[i] + 0.1 * step
            confident = m[i] / average(residuals[i], (step - m[i]) ** 2 + 1e-16, 0.9999)
            weights[i] = weights[i] * (1 - rate * decay) - rate * confident
    return weights


def lion(weights: list[Array], gradients: Gradients, rate: float, decay: float, steps: int) -> list[Array]:
    """Chen et al. 2023, program 1."""
    m = [np.zeros_like(w) for w in weights]
    for _ in range(steps):
        for i, g in enumerate(gradients(weights)):
            weights[i] = weights[i] - rate * (np.sign(0.9 * m[i] + 0.1 * g) + decay * weights[i])
            m[i] = 0.99 * m[i] + 0.01 * g
    return weights


def prodigy(weights: list[Array], gradients: Gradients, rate: float, decay: float, steps: int) -> list[Array]:
    """Mishchenko and Defazio 2023, algorithm 4, with Adam's bias correction and decoupled decay."""
    start = [w.copy() for w in weights]
    m, v, s = ([np.zeros_like(w) for w in weights] for _ in range(3))
    d = first = 1e-6
    beta3, r = math.sqrt(0.999), 0.0
    for t in range(1, steps + 1):
        correction = math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        step = d * rate * correction
        g = gradients(weights)
        r *= beta3
        for i in range(len(weights)):
            r += d / first * step * (g[i] * (start[i] - weights[i])).sum()
            m[i] = 0.9 * m[i] + 0.1 * d * g[i]
            v[i] = 0.999 * v[i] + 0.001 * (d * g[i]) ** 2
            s[i] = beta3 * s[i] + d / first * step * g[i]
        found = r / sum(np.abs(part).sum() for part in s)
        old, d = d, max(d, found)
        for i in range(len(weights)):
            weights[i] = weights[i] * (1 - decay * step) - step * m[i] / (np.sqrt(v[i]) + d * 1e-8)
        assert d >= old
    return weights


def schedule_free(weights: list[Array], gradients: Gradients, rate: float, decay: float, steps: int) -> list[Array]:
    """Defazio et al. 2024, algorithm 1 with the weights z, x, and y where gradients are taken; returns x."""
    z, x = [w.copy() for w in weights], [w.copy() for w in weights]
    v = [np.zeros_like(w) for w in weights]
    for t in range(1, steps + 1):
        y = [0.1 * z[i] + 0.9 * x[i] for i in range(len(weights))]
        for i, g in enumerate(gradients(y)):
            v[i] = 0.999 * v[i] + 0.001 * g**2
            z[i] = z[i] - rate * (g / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8) + decay * y[i])
            x[i] = x[i] + (z[i] - x[i]) / t
    return x


def prodigy_plus(weights: list[Array], gradients: Gradients, rate: float, decay: float, steps: int) -> list[Array]:
    """Prodigy's step size over schedule-free averaging, as the package describes it: factored second moments, steps
    scaled down by their size, the step size from every eleventh weight, kept in bf16, and limited in its growth.
    Returns x."""

    def half(values: Array) -> Array:
        return torch.tensor(values).bfloat16().double().numpy()

    z, x = [w.copy() for w in weights], [w.copy() for w in weights]
    rows, columns = [np.zeros(64), np.zeros(64)], [np.zeros(64), np.zeros(64)]
    start = [half(w.ravel()[::11]) for w in weights]
    s = [np.zeros_like(part) for part in start]
    d = first = 1e-6
    beta3, r, total = math.sqrt(0.99), 0.0, 0.0
    for _ in range(steps):
        y = [0.1 * z[i] + 0.9 * x[i] for i in range(len(weights))]
        moved, size = 0.0, 0.0
        total += (d * rate) ** 2
        share = (d * rate) ** 2 / total
        for i, g in enumerate(gradients(y)):
            rows[i] = 0.99 * rows[i] + 0.01 * ((d * g) ** 2).mean(1)
            columns[i] = 0.99 * columns[i] + 0.01 * ((d * g) ** 2).mean(0)
            step = d * g / (np.sqrt(np.outer(rows[i], columns[i]) / (rows[i].mean() + 1e-30)) + d * 1e-8)
            step = step / math.sqrt(max(1.0, math.sqrt((step**2).mean())))
            part = g.ravel()[::11]
            scale = d**2 / math.sqrt(first)
            moved += scale * (part * (start[i] - z[i].ravel()[::11])).sum()
            s[i] = half(half(beta3 * s[i]) + scale * part)
            size += half(np.abs(s[i]).sum())
            step = step + decay * y[i]
            z[i] = z[i] - d * rate * step
            x[i] = x[i] + share * (z[i] - x[i])
        r = beta3 * r + (moved if d > first or moved > 0 else 0.0)
        if size > 0:
            d = max(d, min(d * 2**0.25, r / size))
    return x


@pytest.mark.parametrize(
    ("name", "reference", "rate"),
    [
        ("AdamW", adamw, RATE),
        ("Adafactor", adafactor, RATE),
        ("CAME", came, RATE / 10),
        ("Prodigy", prodigy, 1.0),
        ("AdamWScheduleFree", schedule_free, RATE),
        ("ProdigyPlusScheduleFree", prodigy_plus, 1.0),
    ],
)
@pytest.mark.parametrize("steps", [1, STEPS])
def test_steps_are_those_of_the_paper(name: str, reference: Reference, rate: float, steps: int) -> None:
    model, optimizer, start = train(Recipe(optimizer=name, unet_lr=rate, weight_decay=DECAY), steps)
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    expected = reference([w.copy() for w in start], numpy_gradients(model), rate, DECAY, steps)
    for weight, before, after in zip((model.first, model.second), start, expected, strict=True):
        moved = weight.detach().double().numpy() - before
        size = np.abs(after - before).max()
        assert size > 0
        # fp32 rounds weights of about 0.4 to a relative 6e-8, which is far below a step of 1e-6
        assert moved == pytest.approx(after - before, abs=2e-3 * size + 1e-7)


def gap(values: Array, signed: bool, blocks: int = 256) -> Array:
    """Return the error bound of bitsandbytes' 8-bit map: the distance of the two levels around each value."""
    from bitsandbytes.functional import create_dynamic_map

    levels = np.sort(create_dynamic_map(signed=signed).numpy().astype(np.float64))
    most = np.abs(values).reshape(-1, blocks).max(1, keepdims=True)
    place = np.clip(np.searchsorted(levels, values.reshape(-1, blocks) / most), 1, len(levels) - 1)
    return ((levels[place] - levels[place - 1]) * most).reshape(values.shape)


def kept(state: dict[str, Tensor], number: int) -> Array:
    """Return a dequantized moment: the level of each value times the largest of its block of 256."""
    assert state[f"state{number}"].dtype == torch.uint8
    levels = state[f"qmap{number}"][state[f"state{number}"].long()]
    most = state[f"absmax{number}"]
    return (levels.reshape(-1, 256) * most[:, None]).reshape(levels.shape).double().numpy()


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit"])
def test_8_bit_adamw_is_adamw_within_quantization_error(name: str) -> None:
    """The first step is AdamW's, since moments are rounded after it. The second is AdamW's from the rounded moments,
    which are off by no more than the gaps of the map: the first by that around each value, the second, whose small
    values are rounded more coarsely, by the widest."""
    recipe = Recipe(optimizer=name, unet_lr=RATE, weight_decay=DECAY)
    model, optimizer, start = train(recipe, 1)
    gradients = numpy_gradients(model)
    once = adamw([w.copy() for w in start], gradients, RATE, DECAY, 1)
    moments = []
    for weight, after, g in zip((model.first, model.second), once, gradients(start), strict=True):
        assert weight.detach().double().numpy() == pytest.approx(after, abs=1e-6)
        m, v = kept(optimizer.state[weight], 1), kept(optimizer.state[weight], 2)
        assert (np.abs(m - 0.1 * g) <= gap(0.1 * g, True)).all()
        assert np.abs(v - 0.001 * g**2).max() <= gap(0.001 * g**2, False).max()
        assert (m != 0.1 * g).any()
        moments.append((m, v))
    optimizer.zero_grad()
    model.loss().backward()
    optimizer.step()
    for i, g in enumerate(gradients(once)):
        m, v = 0.9 * moments[i][0] + 0.1 * g, 0.999 * moments[i][1] + 0.001 * g**2
        step = m / (1 - 0.9**2) / (np.sqrt(v / (1 - 0.999**2)) + 1e-8)
        twice = once[i] - RATE * step - RATE * DECAY * once[i]
        assert (model.first, model.second)[i].detach().double().numpy() == pytest.approx(twice, abs=1e-6)


def test_8_bit_lion_is_lion_except_for_flipped_signs() -> None:
    recipe = Recipe(optimizer="Lion8bit", unet_lr=RATE, weight_decay=DECAY)
    model, _, start = train(recipe, 1)
    gradients = numpy_gradients(model)
    once = lion([w.copy() for w in start], gradients, RATE, DECAY, 1)
    for weight, after in zip((model.first, model.second), once, strict=True):
        assert weight.detach().double().numpy() == pytest.approx(after, abs=1e-6)
    model, _, start = train(recipe, 2)
    twice = lion([w.copy() for w in start], gradients, RATE, DECAY, 2)
    first, second = gradients(start), gradients(once)
    for i, weight in enumerate((model.first, model.second)):
        direction = 0.9 * 0.01 * first[i] + 0.1 * second[i]
        sure = np.abs(direction) > 0.9 * gap(0.01 * first[i], True) + 1e-7
        assert sure.mean() > 0.9
        assert weight.detach().double().numpy()[sure] == pytest.approx(twice[i][sure], abs=1e-6)


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize(
    "name",
    [
        "AdamW", "AdamW8bit", "Adafactor", "CAME", "Prodigy", "Lion8bit", "PagedAdamW8bit", "AdamWScheduleFree",
        "ProdigyPlusScheduleFree",
    ],
)  # fmt: skip
def test_a_restored_optimizer_continues_bit_for_bit(name: str) -> None:
    rate = 1.0 if name.startswith("Prodigy") else RATE
    recipe = Recipe(optimizer=name, unet_lr=rate)
    whole, _, _ = train(recipe, 5)
    part, optimizer, _ = train(recipe, 3)
    saved = {name: value.clone() for name, value in part.state_dict().items()}
    again = TwoLayers()
    again.load_state_dict(saved)
    resumed = make_optimizer(recipe, [{"name": "unet", "params": [again.first, again.second], "lr": rate}])
    load_optimizer_state(resumed, optimizer.state_dict())
    for trained, weight in zip((part.first, part.second), (again.first, again.second), strict=True):
        for key, value in optimizer.state[trained].items():
            if isinstance(value, Tensor):
                assert resumed.state[weight][key].dtype == value.dtype
    for _ in range(2):
        resumed.zero_grad()
        again.loss().backward()
        resumed.step()
    assert torch.equal(again.first, whole.first)
    assert torch.equal(again.second, whole.second)
