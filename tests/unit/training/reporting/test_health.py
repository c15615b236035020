"""Warning signs of a run: each becomes a hint once, also after a resume."""

from __future__ import annotations

import json

from lora_studio.training.progress import Progress
from lora_studio.training.reporting.health import judge_progress, new_hints

TOTAL = 400


def diverging_run() -> Progress:
    return Progress(step=200, losses=[0.1 + (step / 100) ** 3 for step in range(1, 201)])


def test_each_hint_is_returned_once() -> None:
    progress = diverging_run()
    assert [hint.code for hint in new_hints(progress, TOTAL)] == [judge_progress(progress, TOTAL).code] == ["rising"]
    assert new_hints(progress, TOTAL) == []
    resumed = Progress.from_dict(json.loads(json.dumps(progress.to_dict())))
    assert judge_progress(resumed, TOTAL) == judge_progress(progress, TOTAL)
    assert new_hints(resumed, TOTAL) == []
