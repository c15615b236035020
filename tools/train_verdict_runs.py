"""Train the real runs that the verdicts are tested on: `python tools/train_verdict_runs.py [--out DIR] [NAME...]`.

Each run trains the demo's recipe on the example images and the embedded base, with one thing wrong or different. Its
curves go to tests/data/verdict_runs/NAME.json: losses and relative losses by step, fixed-noise losses by step, and the
base's. Run it again after a change of the base, the example images or the demo's recipe; seeds are fixed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data" / "verdict_runs"
EMBEDDED = ROOT / "lora_studio" / "demo" / "base"
sys.path.insert(0, str(ROOT))

from training_runs import claim_prediction_type, curves_of  # noqa: E402

from lora_studio import api  # noqa: E402
from lora_studio.dataset.ingest.importers import import_paths  # noqa: E402
from lora_studio.errors import StudioError  # noqa: E402
from lora_studio.events import Event  # noqa: E402
from lora_studio.example import BASE, EXAMPLE_IMAGES, STYLE_TAGS, TRIGGER  # noqa: E402
from lora_studio.planning.presets import load_preset  # noqa: E402
from lora_studio.settings.choices import ExistingCaptions  # noqa: E402
from lora_studio.settings.recipe import Recipe  # noqa: E402
from lora_studio.workspace.project import Home  # noqa: E402

STEPS = 300
# The verdict's answers are known by how a run was made: what is changed, and by which factor the rates are.
RUNS: dict[str, dict[str, Any]] = {
    "healthy": {},
    "rate_x10": {"rate": 10},
    "healthy_2": {"seed": 2},
    "healthy_batch_4": {"batch_size": 4, "seed": 3},
    "rate_x3": {"rate": 3},
    "rate_x10_2": {"rate": 10, "seed": 2},
    "rate_x10_batch_2": {"rate": 10, "batch_size": 2, "seed": 4},
    "rate_x10_split": {"rate": 10, "validation_split": 0.2},
    "rate_by_100": {"rate": 0.01},
    "rate_x100": {"rate": 100},
    "wrong_prediction": {"prediction": "v_prediction"},
    "batch_1": {"batch_size": 1, "max_train_steps": 1000},
    "split": {"validation_split": 0.2},
    "overtrained": {"validation_split": 0.2, "max_train_steps": 3 * STEPS, "epochs": 60},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(RUNS), metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the curves")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="verdict-runs-") as folder:
        dataset = make_dataset(Path(folder))
        for name in options.names:
            curves = train(name, dataset, Path(folder))
            (options.out / f"{name}.json").write_text(json.dumps(curves) + "\n", "utf-8")
            print(name, len(curves["losses"]), "steps", flush=True)


def make_dataset(folder: Path) -> Path:
    """Return the curated and tagged example images, as in the demo."""
    dataset = folder / "dataset"
    import_paths([EXAMPLE_IMAGES], dataset / "10_inkstamp")
    api.curate(dataset, apply=True)
    api.tag(
        dataset,
        tagger="demo",
        trigger_word=TRIGGER,
        existing=ExistingCaptions.APPEND,
        exclude_tags=STYLE_TAGS,
        home=Home(folder / "home"),
        out=folder / "tags",
    )
    return dataset


def train(name: str, dataset: Path, folder: Path) -> dict[str, Any]:
    """Train a run and return its curves; a run that fails, as some are meant to, has those up to then."""
    changes = dict(RUNS[name])
    rate, prediction = changes.pop("rate", 1), changes.pop("prediction", None)
    recipe = load_preset("demo") | {"max_train_steps": STEPS, "save_every_n_epochs": 1000}
    recipe |= {"sample_every_n_epochs": 0, "sample_at_first": False}
    recipe |= {
        setting: getattr(Recipe.parse(recipe), setting) * rate for setting in ("unet_lr", "text_encoder_lr")
    } | changes
    base = BASE if prediction is None else str(claim_prediction_type(EMBEDDED, folder / prediction, prediction))
    events: list[Event] = []
    try:
        api.train(
            dataset,
            base=base,
            name=name,
            trigger_word=TRIGGER,
            recipe=Recipe.parse(recipe),
            out=folder / name,
            home=Home(folder / "home"),
            on_event=events.append,
        )
    except StudioError as error:
        print(f"{name}: {error}", file=sys.stderr)
    return {"run": name, "changes": RUNS[name], "recipe": recipe, **curves_of(events)}


if __name__ == "__main__":
    main()
