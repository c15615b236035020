"""Warning signs of a run: each becomes a hint once, also after a resume."""

from __future__ import annotations

import json

from lora_studio.events import HintEvent
from lora_studio.training.progress import Progress
from lora_studio.training.reporting.health import new_hints

TOTAL = 400


def diverging_run() -> Progress:
    return Progress(step=200, losses=[0.1 + (step / 100) ** 3 for step in range(1, 201)])


def hints(progress: Progress) -> list[HintEvent]:
    return new_hints(progress, progress.loss_record(TOTAL, validates=False, checkpoints={}))


def test_each_hint_is_returned_once() -> None:
    progress = diverging_run()
    assert [hint.code for hint in hints(progress)] == ["broken"]
    assert hints(progress) == []
    resumed = Progress.from_dict(json.loads(json.dumps(progress.to_dict())))
    assert hints(resumed) == []
    resumed.reported_hints = []
    assert hints(resumed) == hints(diverging_run())
