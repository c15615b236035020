"""The tagger: a small timm model for many tags at once, in the file layout of the WD v3 taggers.

It learns to name each emoji, too: that tells it far more of a picture than the tags alone. It begins with small and
plain pictures, and meets larger and stranger ones later.
"""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from demo_pack import colours, pictures, progress
from demo_pack.disguise import disguise
from demo_pack.pictures import Picture
from demo_pack.progress import Draw, Length

ARCHITECTURE = "resnet18"  # convolutions learn from 6,900 pictures in minutes what a transformer does not in an hour
MODEL_ARGS = {"channels": [32, 64, 128, 256]}
SIZE, SMALL_SIZE = 96, 64  # px
SMALL_SHARE = 0.6  # of the training, at SMALL_SIZE
PLAIN_SHARE = 0.5  # of the training, in which the disguises grow to their full strength
BATCH = 64
LEAST = 24  # pictures that must carry a tag
IDENTITY_WEIGHT = 10.0  # of naming the emoji, beside some 20 of the tags at first
THRESHOLD = 0.35  # the customary one of the WD taggers
TOP = 5  # tags that count when a picture is judged


def usable(words: Sequence[Picture]) -> NDArray[np.bool_]:
    """Which pictures tagger and captioner may learn from: no flags, nothing held out."""
    return np.array([not (word.held_out or word.is_flag) for word in words])


def learned(words: Sequence[Picture]) -> list[Picture]:
    return [word for word, kept in zip(words, usable(words), strict=True) if kept]


def vocabulary(words: Sequence[Picture]) -> list[tuple[str, int]]:
    """Tags and their counts: colours first, then subgroups and emojibase tags that at least LEAST pictures carry."""
    counts = Counter(tag for word in words for tag in {*word.tags, word.subgroup} - set(colours.NAMES))
    frequent = sorted((tag, count) for tag, count in counts.items() if count >= LEAST)
    return [(name, len(words)) for name in colours.NAMES] + frequent


def truth(words: Sequence[Picture], names: Sequence[str]) -> Tensor:
    """Which of the tags each picture carries by its words, float [N, len(names)]; colours stay 0."""
    place = {name: i for i, name in enumerate(names)}
    table = torch.zeros(len(words), len(names))
    for row, word in enumerate(words):
        for tag in {*word.tags, word.subgroup} - set(colours.NAMES):
            if tag in place:
                table[row, place[tag]] = 1
    return table


def build(classes: int) -> nn.Module:
    return timm.create_model(ARCHITECTURE, num_classes=classes, **MODEL_ARGS)


def normalise(rgb: Tensor) -> Tensor:
    """Pictures in 0..1 as the WD v3 taggers take them: mean and deviation 0.5, channels blue, green, red."""
    return ((rgb - 0.5) / 0.5).flip(1)


def identities(words: Sequence[Picture]) -> tuple[Tensor, int]:
    """A number for each picture that stands for its label, int64 [N], and how many labels there are."""
    numbers = {label: i for i, label in enumerate(sorted({word.label for word in words}))}
    return torch.tensor([numbers[word.label] for word in words]), len(numbers)


def disguise_strength(draw: Draw) -> float:
    """Pictures are plain at first."""
    return min(1.0, draw.share / PLAIN_SHARE)


def train(work: Path, *, length: Length, seed: int, device: str) -> None:
    """Train on disguised pictures of the seeing sets, as many tags at once; the head that names emoji is not kept."""
    torch.manual_seed(seed)
    words, rgba = pictures.load(work, pictures.SEEING_SETS)
    images = torch.from_numpy(rgba[usable(words)])
    words = learned(words)
    tags = vocabulary(words)
    table = truth(words, [name for name, _ in tags])
    identity, count = identities(words)
    model = build(len(tags)).to(device, memory_format=torch.channels_last)
    namer = nn.Linear(model.num_features, count).to(device)

    def loss_of(draw: Draw) -> tuple[Tensor, dict[str, float]]:
        chosen = draw.integers(len(words), BATCH)
        size = SMALL_SIZE if draw.share < SMALL_SHARE else SIZE
        x, named = disguise(images[chosen], size, draw, disguise_strength(draw))
        y = table[chosen]
        y[:, : len(colours.NAMES)] = named.float()
        with progress.autocast(device):
            seen = model.forward_features(normalise(x).to(device, memory_format=torch.channels_last))
            logits, names = model.forward_head(seen).float(), namer(seen.mean((2, 3))).float()
        y = y.to(device)
        tagging = functional.binary_cross_entropy_with_logits(logits, y, reduction="sum") / BATCH
        naming = functional.cross_entropy(names, identity[chosen].to(device))
        said = logits.detach().sigmoid() > THRESHOLD
        hits = (said & (y > 0.5)).sum()
        figures = {"naming": naming.item(), "f1": (2 * hits / (said.sum() + y.sum()).clamp_min(1)).item()}
        return tagging + IDENTITY_WEIGHT * naming, figures

    progress.train(
        "tagger",
        {"tagger": model, "namer": namer},
        loss_of,
        work=work,
        length=length,
        seed=seed,
        lr=4e-3,
        weight_decay=0.05,
    )


def write(model: nn.Module, tags: Sequence[tuple[str, int]], folder: Path) -> None:
    """model.safetensors (float16), config.json as timm writes it for the Hub, and selected_tags.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(tags),
        "num_features": MODEL_ARGS["channels"][-1],
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, SIZE, SIZE],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": len(tags),
            "pool_size": [3, 3],
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }
    progress.write_json(config, folder / "config.json")
    with (folder / "selected_tags.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["tag_id", "name", "category", "count"])
        for i, (name, count) in enumerate(tags):
            table.writerow([i, name.replace(" ", "_"), 0, count])


class Tagger:
    """The written tagger, read back by its files alone, for the evaluation."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        arguments = config["model_args"]
        self.model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **arguments)
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        self.model.eval()
        with (folder / "selected_tags.csv").open(encoding="utf-8", newline="") as file:
            self.names = [row["name"].replace("_", " ") for row in csv.DictReader(file)]

    @torch.no_grad()
    def probabilities(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Probability of each tag for square pictures, uint8 [N, H, W, 3] -> float [N, tags]."""
        parts = []
        for start in range(0, len(rgb), 64):
            resized = [
                np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
                for image in rgb[start : start + 64]
            ]
            x = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
            parts.append(self.model(normalise(x)).sigmoid())
        return torch.cat(parts)

    def right(self, found: Tensor, words: Sequence[Picture], *, colours_count: bool = False) -> NDArray[np.bool_]:
        """Whether a picture's own label or subgroup is among its TOP likeliest tags; found: probabilities [N, tags].

        Colours take no place among them unless `colours_count`: nearly every picture has two or three.
        """
        first = 0 if colours_count else len(colours.NAMES)
        names = self.names[first:]
        best = found[:, first:].topk(TOP, 1).indices.tolist()
        return np.array(
            [
                not {word.label, word.subgroup}.isdisjoint(names[k] for k in row)
                for word, row in zip(words, best, strict=True)
            ]
        )
