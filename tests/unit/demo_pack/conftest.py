"""A work folder of the pack's build tool with small icon sets and an untrained autoencoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_pack import pictures, vae
from demo_pack.pictures import Picture

SIZE = 32
EVERY = [f"emoji {number}" for number in range(200)]
UNSEEN = next(label for label in EVERY if Picture("", 0, label, "", ()).held_out)
LABELS = [*EVERY[:12], UNSEEN]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Write small icon sets with flags and emoji that train no model, and an untrained autoencoder."""
    rng = np.random.default_rng(0)
    for name in pictures.TRAINING_SETS:
        rows = [{"label": label, "subgroup": "face smiling", "tags": []} for label in LABELS]
        rows[0]["subgroup"] = pictures.FLAGS[0]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 256, (len(LABELS), SIZE, SIZE, 4), np.uint8))
    torch.manual_seed(0)
    vae.build().save_pretrained(tmp_path / "vae")
    return tmp_path
