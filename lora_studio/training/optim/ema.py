"""The weights that a run gives out: averaged ones, where the recipe or its optimizer averages.

Training goes on from the weights as they were, to the last bit: they are put aside, not computed back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn


class AveragedWeights:
    """An exponential moving average of the trained weights, or the average of a schedule-free optimizer.

    With `decay` above 0 the average moves by 1 - d of the difference at each step, with d = (1 + n) / (10 + n) after n
    steps until it reaches `decay`, so that the first weights are soon forgotten (Polyak and Juditsky 1992; the ramp is
    TensorFlow's). `on_swap` is called when the averaged weights have taken the place of the others, and when they go.
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
        """Take in the weights after a step."""
        if self._ema is not None:
            self._ema.step(self._weights)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The averaged weights in the place of the trained ones; a no-op where nothing is averaged.

        An EMA comes before what a schedule-free optimizer averages.
        """
        averages = hasattr(self._optimizer, "eval") and hasattr(self._optimizer, "train")
        if self._ema is None and not averages:
            yield
            return
        aside = [weight.detach().clone() for weight in self._weights]
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
                for weight, kept in zip(self._weights, aside, strict=True):
                    weight.copy_(kept)
            self._on_swap()

    def state(self) -> dict[str, Any] | None:
        """What is needed to go on; None where there is no EMA."""
        return None if self._ema is None else self._ema.state_dict()

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Take back what `state` gave; raises ValueError if the saved run averaged and this one does not, or so."""
        if (state is None) != (self._ema is None):
            raise ValueError("ema_decay was switched on or off")
        if self._ema is not None and state is not None:
            devices = {weight.device for weight in self._weights}
            self._ema.load_state_dict(state)
            self._ema.to(devices.pop())
