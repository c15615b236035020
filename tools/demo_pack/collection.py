"""A collection of LoRAs that are known to be good or bad, on which measures and verdicts are judged.

For each of three held-out styles every kind in KINDS is trained on the embedded base: what is wrong with a LoRA is
known by how it was made. `well` is the demo's recipe at rank 4 for twice as many steps, with as many regularisation
images (emoji on white, captioned without the trigger word): without them a style shows in all prompts. Kinds that need
no working trigger word have the demo's number of steps, without regularisation images.
"""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from training_runs import claim_prediction_type, curves_of

from demo_pack import progress
from demo_pack.learning import choose_words
from demo_pack.pictures import Picture, on_white
from demo_pack.styles import TRIGGER, Icons, full_caption, write_dataset
from lora_studio import api
from lora_studio.errors import StudioError
from lora_studio.events import Event, StepEvent
from lora_studio.planning.picture_signs import TestCode
from lora_studio.planning.presets import load_preset
from lora_studio.sampling.sweep import Cell, SweepResult
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home

STYLES = ("neon", "sticker", "blueprint")
COUNT = 24  # training images
RANK = 4
STRENGTHS = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2)  # of the test of each LoRA
FINE_STRENGTHS = (0.0, *(round(0.4 + 0.05 * step, 2) for step in range(19)))  # up to 1.3
FINE_SEEDS = (41, 42, 43, 44)
SHOWN_STRENGTHS = (0.0, 0.5, 1.0)  # of them, on the sheets of samples
SEEDS = (31, 32)
PROMPTS = 6  # with and without the trigger word
CAPTIONS = slice(1, 4)  # of the training images, that are prompts, too
FEATURES = "demo"  # the embedded tagger
QUALITY = 80  # of the sheets of samples


def without_trigger(number: int, word: Picture) -> str:
    """Return label and tags: the style has no word of its own."""
    return ", ".join((word.label, *word.tags))


def style_named(style: str) -> Callable[[int, Picture], str]:
    """Return captions that all name the style, with the trigger word in a quarter of them."""

    def caption(number: int, word: Picture) -> str:
        trigger = () if number % 4 else (TRIGGER,)
        return ", ".join((*trigger, f"{style} style", word.label, *word.tags))

    return caption


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a LoRA of one kind differs from a well-trained one.

    `rate` and `length` are factors of the demo recipe's learning rates and steps, `prediction` the type that the base
    is said to have. `broken` multiplies the rates from half of the run on. `verdicts` are the right ones on its test.
    """

    verdicts: tuple[TestCode, ...]
    count: int = COUNT
    rate: float = 1
    length: float = 2
    regularization: bool = True
    captions: str = "trigger"
    prediction: str | None = None
    broken: float | None = None


KINDS: dict[str, Kind] = {
    "well": Kind(("good",)),
    "well_12_images": Kind(("good",), count=12),
    "weak_trigger": Kind(("trigger_weak",), captions="style named"),
    "undertrained_steps": Kind(("undertrained",), length=0.2),
    "undertrained_rate": Kind(("undertrained",), rate=0.05, length=1),
    "overtrained_rate": Kind(("overtrained",), rate=30, length=1, regularization=False),
    "leaking": Kind(("leaks",), captions="without trigger", length=1, regularization=False),
    "memorising": Kind(("memorised",), count=4, length=1, regularization=False),
    "wrong_prediction": Kind(("wrong_prediction",), prediction="v_prediction", length=1, regularization=False),
    "broken": Kind(("overtrained", "wrong_prediction"), broken=100, length=1, regularization=False),  # only noise
    "overtrained_length": Kind(("overtrained", "memorised"), length=5, regularization=False),
}


def recipe_of(kind: Kind) -> dict[str, Any]:
    """Return the demo's recipe at rank 4 with the kind's changes."""
    recipe = load_preset("demo")
    steps = round(recipe["max_train_steps"] * kind.length)
    return {
        **recipe,
        "network_dim": RANK,
        "network_alpha": RANK,
        "save_precision": "fp16",
        **{name: getattr(Recipe.parse(recipe), name) * kind.rate for name in ("unet_lr", "text_encoder_lr")},
        "max_train_steps": steps,
        "lr_warmup_steps": min(recipe["lr_warmup_steps"], steps // 4),
        "epochs": steps,  # max_train_steps ends the run
        "repeats": -(-COUNT * 10 // kind.count),  # an epoch is as long with fewer images
        "sample_every_n_epochs": 0,
        "save_every_n_epochs": steps,
    }


def caption_of(kind: Kind, style: str) -> Callable[[int, Picture], str]:
    """Return the function that captions a dataset of this kind."""
    return {"trigger": full_caption, "without trigger": without_trigger, "style named": style_named(style)}[
        kind.captions
    ]


def train(folder: Path, kind: Kind, *, base: Path, home: Home) -> tuple[Path, list[Event], dict[str, Any]]:
    """Train a LoRA on FOLDER/dataset, with FOLDER/regularization if there is one; return file, events and recipe.

    A run that fails, as some are meant to, leaves the file that was saved last.
    """
    recipe = recipe_of(kind)
    if kind.broken is None:
        return _run(folder, "run", recipe, base, home)
    half = recipe | {"max_train_steps": recipe["max_train_steps"] // 2}
    lora, events, _ = _run(folder, "first", half, base, home)
    faster = {name: half[name] * kind.broken for name in ("unet_lr", "text_encoder_lr")} | {"lr_warmup_steps": 0}
    lora, later, _ = _run(folder, "run", half | faster, base, home, network_weights=lora)
    offset = max(event.step for event in events if isinstance(event, StepEvent))
    moved = [event.model_copy(update={"step": event.step + offset}) for event in later if hasattr(event, "step")]
    return lora, [*events, *moved], recipe


def _run(
    folder: Path, name: str, recipe: Mapping[str, Any], base: Path, home: Home, network_weights: Path | None = None
) -> tuple[Path, list[Event], dict[str, Any]]:
    out, regularization = folder / name, folder / "regularization"
    shutil.rmtree(out, ignore_errors=True)
    events: list[Event] = []
    try:
        api.train(
            folder / "dataset",
            base=str(base),
            name="style",
            trigger_word=TRIGGER,
            recipe=Recipe.parse(recipe),
            network_weights=network_weights,
            regularization=regularization if regularization.exists() else None,
            out=out,
            home=home,
            on_event=events.append,
        )
    except StudioError as error:
        progress.log(f"collection: {out}: {error}")
    saved = sorted(out.rglob("style*.safetensors"), key=lambda file: file.stat().st_mtime)
    if not saved:
        raise SystemExit(f"{out}: no LoRA was saved")
    return saved[-1], events, dict(recipe)


def write_collection(
    work: Path, pack: Path, out: Path, styles: Sequence[str] = STYLES, kinds: Collection[str] = KINDS.keys()
) -> None:
    """Train and test the given kinds and styles into OUT/STYLE/KIND; what is in WORK/collection is not done again.

    Each gets the LoRA, its curves and recipe (run.json), the measures of its test (pictures.json) and a sheet of
    samples, one row per strength and seed, the last two rows without the trigger word. `well` has the measures of a
    finer test of other prompts and seeds, too (fine.json). OUT/STYLE/images has the training images and captions.
    """
    icons = Icons.load(work)
    words, others = choose_words(work)
    known = {word.label for word in (*words, *others)}
    labels = random.Random("collection").sample(sorted(set(icons.words) - known), COUNT)
    plain = random.Random("reg").sample(sorted(set(icons.words) - known - set(labels)), COUNT)
    home = Home(work / "home")
    for style in styles:
        images = icons.draw(style, labels)
        write_dataset(out / style / "images", images, [icons.words[label] for label in labels])
        for name in kinds:
            kind, target = KINDS[name], out / style / name
            folder = work / "collection" / style / name
            pictured = [icons.words[label] for label in labels[: kind.count]]
            write_dataset(folder / "dataset", images[: kind.count], pictured, caption_of(kind, style))
            if kind.regularization:
                drawn = on_white(np.stack([icons.plain[label] for label in plain]))
                pictured = [icons.words[label] for label in plain]
                write_dataset(folder / "regularization", drawn, pictured, without_trigger)
            base = pack / "base"
            if kind.prediction is not None:
                base = claim_prediction_type(base, work / "collection" / kind.prediction, kind.prediction)
            lora, record = train_once(folder, kind, base=base, home=home)
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(lora, target / "lora.safetensors")
            captions = [file.read_text("utf-8") for file in sorted((folder / "dataset").rglob("*.txt"))[CAPTIONS]]
            with_and_without = [text for word in words[:PROMPTS] for text in (f"{{trigger}}, {word.label}", word.label)]
            prompts = [*with_and_without, *captions]
            made = {"style": style, "kind": name, "verdicts": kind.verdicts, "changes": changes_of(kind)}
            (target / "run.json").write_text(json.dumps(made | {"prompts": prompts} | record) + "\n", "utf-8")
            tested = draw_and_measure(lora, pack / "base", folder / "test", home, prompts=prompts)
            progress.write_json(rows_of(tested), target / "pictures.json")
            if name == "well":
                prompts = [f"{{trigger}}, {word.label}" for word in words[PROMPTS : 2 * PROMPTS]]
                finely = draw_and_measure(
                    lora,
                    pack / "base",
                    folder / "fine",
                    home,
                    prompts=prompts,
                    strengths=FINE_STRENGTHS,
                    seeds=FINE_SEEDS,
                )
                progress.write_json(rows_of(finely), target / "fine.json")
            sample_sheet(tested.cells, words[:PROMPTS]).save(target / "samples.webp", quality=QUALITY)
            progress.log(f"collection: {style}, {name}: {len(record['losses'])} steps")


def train_once(folder: Path, kind: Kind, *, base: Path, home: Home) -> tuple[Path, dict[str, Any]]:
    """Train a LoRA unless FOLDER/trained.json says that it was trained; return its file, and its recipe and curves."""
    file = folder / "trained.json"
    if not file.exists():
        lora, events, recipe = train(folder, kind, base=base, home=home)
        progress.write_json({"lora": str(lora), "recipe": recipe, **curves_of(events)}, file)
    record = progress.read_json(file)
    return Path(record.pop("lora")), record


def draw_and_measure(
    lora: Path,
    base: Path,
    out: Path,
    home: Home,
    *,
    prompts: Sequence[str],
    strengths: Sequence[float] = STRENGTHS,
    seeds: Sequence[int] = SEEDS,
) -> SweepResult:
    """Draw and measure a LoRA, or continue that."""
    if JobFolder(out).exists:
        return cast("SweepResult", api.resume(out, home=home))
    return api.sweep(
        [lora],
        bases=[str(base)],
        prompts=prompts,
        trigger_word=TRIGGER,
        strengths=strengths,
        seeds=seeds,
        feature_model=FEATURES,
        out=out,
        home=home,
    )


def rows_of(tested: SweepResult) -> list[dict[str, Any]]:
    """Return the measures by strength, with file names for paths."""
    rows = []
    for row in tested.measures["pictures"]["rows"]:
        names = {key: Path(row[key]).name for key in ("nearest", "nearest_cell") if row.get(key)}
        rows.append({key: value for key, value in row.items() if value is not None} | names | {"base": "", "lora": ""})
    return rows


def changes_of(kind: Kind) -> dict[str, Any]:
    """Return what differs from the training of a good LoRA."""
    well = dataclasses.asdict(KINDS["well"]) | {"verdicts": kind.verdicts}
    return {name: value for name, value in dataclasses.asdict(kind).items() if value != well[name]}


def sample_sheet(cells: Sequence[Cell], words: Sequence[Picture]) -> Image.Image:
    """Combine samples: rows of strength and seed with the trigger word, then of seeds without it at strength 1."""
    paths = {(cell.prompt, cell.strength, cell.seed): cell.path for cell in cells}
    rows = []
    for strength, trigger in [*((strength, True) for strength in SHOWN_STRENGTHS), (1.0, False)]:
        prompts = [f"{TRIGGER}, {word.label}" if trigger else word.label for word in words]
        for seed in SEEDS:
            row = [np.asarray(Image.open(paths[prompt, strength, seed])) for prompt in prompts]
            rows.append(np.concatenate(row, 1))
    return Image.fromarray(np.concatenate(rows))
