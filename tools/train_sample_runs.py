"""Train the real runs whose samples' verdicts are tested: `python tools/train_sample_runs.py [--out DIR] [NAME...]`.

As `train_verdict_runs.py`, with samples before training and every few epochs. The measures of the samples go to
tests/data/sample_runs/NAME.json, with file names for paths.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from train_verdict_runs import RUNS, make_dataset, train

from lora_studio.dataset.images.decode import find_images
from lora_studio.events import SampleMeasuresEvent
from lora_studio.workspace.job_folder import JobFolder

DATA = Path(__file__).resolve().parent.parent / "tests" / "data" / "sample_runs"
SAMPLES = {
    "sample_at_first": True,
    "sample_every_n_epochs": 5,
    "sample_prompts": ["{trigger}, grinning face", "{trigger}, red apple", "{trigger}, house", "clock"],
}
FEW_IMAGES = 4
# The run `memorised` sees its few images so often that it must copy them.
RUNS["memorised"] = {"max_train_steps": 600, "epochs": 600, "sample_every_n_epochs": 10}
NAMES = ("healthy", "rate_x10", "wrong_prediction", "memorised")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NAMES), metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the measures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sample-runs-") as folder:
        dataset = make_dataset(Path(folder))
        few = with_few_images(dataset, Path(folder) / "few")
        for name in options.names:
            RUNS[name] = SAMPLES | RUNS[name]
            train(name, few if name == "memorised" else dataset, Path(folder))
            measured = measures_of(Path(folder) / name)
            (options.out / f"{name}.json").write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
            print(name, len(measured), "times", flush=True)


def with_few_images(dataset: Path, folder: Path) -> Path:
    """Return a dataset with the first images of another one and their captions."""
    target = folder / "10_inkstamp"
    target.mkdir(parents=True)
    for image in find_images(dataset)[:FEW_IMAGES]:
        shutil.copy(image, target)
        shutil.copy(image.with_suffix(".txt"), target)
    return folder


def measures_of(run: Path) -> list[dict[str, Any]]:
    """Return the measures of a run's samples, in order of their steps."""
    events = [event for event in JobFolder(run).events()[0] if isinstance(event, SampleMeasuresEvent)]
    return [event.record() | {"time": 0, "nearest": [Path(path).name for path in event.nearest]} for event in events]


if __name__ == "__main__":
    main()
