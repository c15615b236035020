"""The files of a run's saved training states, without reading tensors.

```
checkpoints/state/
  00000120-00003/      step 120, 3 epochs finished
    lora.safetensors   weights, fp32
    optimizer.pt       optimizer, schedule, scaler and EMA
    state.json         written last: progress, what the run must still be, and the SHA-256 of the other files
```
"""

from __future__ import annotations

from pathlib import Path

STATE_FOLDER = "checkpoints/state"  # in the run folder
VERSION = 2  # of state.json
WEIGHTS, OPTIMIZER, MANIFEST = "lora.safetensors", "optimizer.pt", "state.json"


def finished_states(folder: Path) -> list[Path]:
    """Return the folders of complete states, the most recent first."""
    found = folder.glob("[0-9]*-[0-9]*") if folder.is_dir() else iter(())
    return sorted((path for path in found if path.suffix != ".partial"), reverse=True)
