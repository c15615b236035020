"""LoRAs that are known to be good or bad, drawn again from their files and judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_studio import api
from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.images.decode import file_sha256
from lora_studio.sampling.picture_measures import PictureMeasures
from lora_studio.sampling.recommend import judge_lora
from lora_studio.workspace.project import Home

pytestmark = pytest.mark.slow

STYLE = Path(__file__).parents[1] / "data" / "loras" / "blueprint"
KINDS = ("well", "leaking", "overtrained_rate")
TRIGGER = "vexon_st"


def run_of(kind: str, folder: Path) -> Path:
    """Make the folder of a run with a LoRA and the record of its training images; return the LoRA."""
    folder.mkdir()
    records = []
    for image in sorted((STYLE / "images").rglob("*.png")):
        caption = read_caption(image) or ""
        shown = caption.removeprefix(f"{TRIGGER}, ") if kind == "leaking" else caption
        records.append({"set": "train", "path": str(image), "sha256": file_sha256(image), "caption": shown})
    (folder / "dataset.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    return Path(shutil.copy(STYLE / kind / "lora.safetensors", folder / f"{kind}.safetensors"))


def test_verdicts_on_images_that_are_drawn_again(tmp_path: Path, home: Home) -> None:
    run = json.loads((STYLE / "well" / "run.json").read_text("utf-8"))
    done = api.sweep(
        [run_of(kind, tmp_path / kind) for kind in KINDS],
        bases=["embedded"],
        prompts=run["prompts"],
        trigger_word=TRIGGER,
        strengths=[0, 1],
        seeds=[31, 32],
        feature_model="demo",
        out=tmp_path / "test",
        home=home,
    )
    measures = PictureMeasures.model_validate(done.measures["pictures"])
    found = {lora: judge_lora(rows, measures.features).code for (lora, _), rows in measures.by_lora().items() if lora}
    assert found == {"well": "good", "leaking": "leaks", "overtrained_rate": "overtrained"}
