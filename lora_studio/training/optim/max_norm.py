"""Max-norm regularisation: bound how much an adapter changes any one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_studio.lora.inject import Adapters
from lora_studio.lora.norms import delta_factors, delta_norms


@torch.no_grad()
def limit_weight_norms(adapters: Adapters, max_norm: float) -> Tensor:
    """Scale down every weight delta with a Frobenius norm above `max_norm`; return what was done, on the device [3].

    That is the number of scaled layers, then the mean and the maximum of the norms afterwards. Each of the n factors of
    a delta is multiplied by the n-th root of max_norm / norm, as in `apply_max_norm_regularization` of sd-scripts
    (networks/lora.py) and LyCORIS. Magnitudes of a DoRA and
    frozen layers stay. It never waits for the device.
    """
    factors = [delta_factors(layer) for _, _, layer in adapters.layers]
    norms = delta_norms(adapters)
    ratios = (max_norm / norms).clamp(max=1)  # 1 for a norm of 0
    scaled = [(index, found) for index, found in enumerate(factors) if all(w.requires_grad for w in found.values())]
    roots = {count: (ratios ** (1 / count)).unbind() for count in set(map(len, factors))}
    torch._foreach_mul_(
        [weight.data for _, found in scaled for weight in found.values()],
        [roots[len(found)][index] for index, found in scaled for _ in found],
    )
    limited = norms * ratios
    return torch.stack([(ratios < 1).sum().to(norms.dtype), limited.mean(), limited.max()])
