"""EMA or schedule-free averaged weights, swapped in for saving, sampling and validation.

Afterwards training continues from exactly the weights before: they are copied and restored, not recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn


class AveragedWeights:
    """An exponential moving average (EMA) of the trained weights, or the average of a schedule-free optimizer.

    With `decay` above 0 each step moves the EMA by 1 - d of its difference from the weights, d = (1 + n) / (10 + n)
    after n steps until it reaches `decay`, so that the first weights soon have no influence (Polyak and Juditsky 1992;
    the ramp is TensorFlow's). `on_swap` is called after the averaged weights are swapped in, and after they are swapped
    out.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[nn.Parameter],
        decay: float,
        on_swap: Callable[[], None] = lambda: None,
    ) -> None:
        self._optimizer = optimizer
        self._weights = weights
        self._on_swap = on_swap
        self._ema = EMAModel(weights, decay=decay, foreach=True) if decay else None

    def update(self) -> None:
        """Update the EMA with the weights after an optimizer step."""
        if self._ema is not None:
            self._ema.step(self._weights)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Replace the trained weights by the averaged ones inside the block; do nothing if there is no average.

        An EMA takes precedence over a schedule-free optimizer's average.
        """
        is_schedule_free = hasattr(self._optimizer, "eval") and hasattr(self._optimizer, "train")
        if self._ema is None and not is_schedule_free:
            yield
            return
        saved = [weight.detach().to("cpu", copy=True) for weight in self._weights]  # samples need the GPU's memory
        try:
            if self._ema is not None:
                self._ema.copy_to(self._weights)
            else:
                self._optimizer.eval()  # type: ignore[attr-defined]
            self._on_swap()
            yield
        finally:
            if self._ema is None:
                self._optimizer.train()  # type: ignore[attr-defined]
            with torch.no_grad():
                for weight, value in zip(self._weights, saved, strict=True):
                    weight.copy_(value)
            self._on_swap()

    def state(self) -> dict[str, Any] | None:
        """Return the EMA's state for a resume; None if there is no EMA."""
        return None if self._ema is None else self._ema.state_dict()

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Load what `state` returned; raise ValueError if only one of the saved run and this one has an EMA."""
        if (state is None) != (self._ema is None):
            raise ValueError("ema_decay was switched on or off")
        if self._ema is not None and state is not None:
            devices = {weight.device for weight in self._weights}
            self._ema.load_state_dict(state)
            self._ema.to(devices.pop())
