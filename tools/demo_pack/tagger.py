"""The tagger: a small multi-label timm model in the file layout of the WD v3 taggers.

It is also trained to classify each emoji, which teaches it far more about an image than its tags. Training begins with
small, unchanged images, and continues with larger, augmented ones. A share of each batch are the renderings that the
base is trained on, so that it can judge the content of samples in many styles.
"""

import csv
import json
import random
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
from demo_pack.augment import augment, blur
from demo_pack.pictures import Picture
from demo_pack.progress import Length, StepRng
from demo_pack.renderings import Icon, random_rendering

ARCHITECTURE = "resnet18"  # learns from 6,900 images in minutes what a transformer does not learn in an hour
MODEL_ARGS = {"channels": [32, 64, 128, 256]}
SIZE, SMALL_SIZE = 96, 64  # px
SMALL_SHARE = 0.6  # of the training, at SMALL_SIZE
PLAIN_SHARE = 0.5  # of the training, in which augmentation grows to its full strength
BATCH = 64
RENDERED = 28  # of BATCH are renderings; the rest is augmented
MIN_COUNT = 24  # images of a tag in the vocabulary
IDENTITY_WEIGHT = 10.0  # of classifying the emoji; the loss of the tags begins at some 20
THRESHOLD = 0.35  # the usual one of the WD taggers
TOP = 5  # likeliest tags in which an emoji must be recognised


def usable(words: Sequence[Picture]) -> NDArray[np.bool_]:
    """Return a mask of the images that train tagger and captioner: no flags, nothing held out."""
    return np.array([not (word.held_out or word.is_flag) for word in words])


def usable_words(words: Sequence[Picture]) -> list[Picture]:
    return [word for word, kept in zip(words, usable(words), strict=True) if kept]


def vocabulary(words: Sequence[Picture]) -> list[tuple[str, int]]:
    """Return tags with counts: colours first, then subgroups and emojibase tags of at least MIN_COUNT images."""
    counts = Counter(tag for word in words for tag in {*word.tags, word.subgroup} - set(colours.NAMES))
    frequent = sorted((tag, count) for tag, count in counts.items() if count >= MIN_COUNT)
    return [(name, len(words)) for name in colours.NAMES] + frequent


def truth(words: Sequence[Picture], names: Sequence[str]) -> Tensor:
    """Return the tags of each image by its words, float [N, len(names)]; colours stay 0."""
    index = {name: i for i, name in enumerate(names)}
    table = torch.zeros(len(words), len(names))
    for row, word in enumerate(words):
        for tag in {*word.tags, word.subgroup} - set(colours.NAMES):
            if tag in index:
                table[row, index[tag]] = 1
    return table


def build(classes: int) -> nn.Module:
    return timm.create_model(ARCHITECTURE, num_classes=classes, **MODEL_ARGS)


def normalise(rgb: Tensor) -> Tensor:
    """Normalise images in 0..1 like the WD v3 taggers: mean and deviation 0.5, channel order BGR."""
    return ((rgb - 0.5) / 0.5).flip(1)


def identities(words: Sequence[Picture]) -> tuple[Tensor, int]:
    """Return the class index of each image's label, int64 [N], and the number of labels."""
    numbers = {label: i for i, label in enumerate(sorted({word.label for word in words}))}
    return torch.tensor([numbers[word.label] for word in words]), len(numbers)


def augmentation_strength(rng: StepRng) -> float:
    """Return the strength of augmentation, which grows from 0."""
    return min(1.0, rng.share / PLAIN_SHARE)


def render(rgba: Tensor, size: int, rng: random.Random) -> Tensor:
    """Render one icon each in a random style for training: uint8 [B, H, W, 4] -> [B, 3, size, size] in 0..1."""
    drawn = []
    for one in rgba:
        icon = Icon.from_rgba(one.numpy()[:, :: rng.choice((1, -1))].copy())
        while (found := random_rendering(icon, icon, rng)).is_pair:
            pass
        drawn.append(found.image)
    return functional.interpolate(torch.stack(drawn), size=(size, size), mode="bilinear", antialias=True)


def train(work: Path, *, length: Length, seed: int, device: str) -> None:
    """Train on augmented images and renderings of TAGGER_SETS; the head that classifies emoji is not exported.

    Renderings do not train the colour tags: the colours of an icon change with the style.
    """
    torch.manual_seed(seed)
    words, rgba = pictures.load(work, pictures.TAGGER_SETS)
    images = torch.from_numpy(rgba[usable(words)])
    words = usable_words(words)
    tags = vocabulary(words)
    table = truth(words, [name for name, _ in tags])
    identity, count = identities(words)
    model = build(len(tags)).to(device, memory_format=torch.channels_last)
    namer = nn.Linear(model.num_features, count).to(device)
    weights = torch.ones(BATCH, len(tags))
    weights[BATCH - RENDERED :, : len(colours.NAMES)] = 0
    weights = weights.to(device)

    def loss_of(rng: StepRng) -> tuple[Tensor, dict[str, float]]:
        chosen = rng.integers(len(words), BATCH)
        size = SMALL_SIZE if rng.share < SMALL_SHARE else SIZE
        strength = augmentation_strength(rng)
        x, named = augment(images[chosen[:-RENDERED]], size, rng, strength)
        rendered = blur(render(images[chosen[-RENDERED:]], size, rng.python), rng, strength)
        x = torch.cat([x, rendered])
        y = table[chosen]
        y[:-RENDERED, : len(colours.NAMES)] = named.float()
        with progress.autocast(device):
            seen = model.forward_features(normalise(x).to(device, memory_format=torch.channels_last))
            logits, names = model.forward_head(seen).float(), namer(seen.mean((2, 3))).float()
        y = y.to(device)
        tagging = functional.binary_cross_entropy_with_logits(logits, y, weights, reduction="sum") / BATCH
        naming = functional.cross_entropy(names, identity[chosen].to(device))
        predicted = (logits.detach().sigmoid() > THRESHOLD) & (weights > 0)
        hits = (predicted & (y > 0.5)).sum()
        figures = {"naming": naming.item(), "f1": (2 * hits / (predicted.sum() + y.sum()).clamp_min(1)).item()}
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


def adopt(work: Path, pack: Path) -> None:
    """Write the first checkpoint from the exported tagger; its head that classifies emoji begins untrained."""
    words = usable_words(pictures.load(work, pictures.TAGGER_SETS)[0])
    namer = nn.Linear(MODEL_ARGS["channels"][-1], identities(words)[1])
    parts = {"tagger": load_file(pack / "tagger" / "model.safetensors"), "namer": namer.state_dict()}
    progress.adopt("tagger", parts, work)


def write(model: nn.Module, tags: Sequence[tuple[str, int]], folder: Path) -> None:
    """Write model.safetensors (float16), config.json as timm writes it for the Hub, and selected_tags.csv."""
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
    """The exported tagger, loaded from its files, for the evaluation."""

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
        """Return the probability of each tag for square images, uint8 [N, H, W, 3] -> float [N, tags]."""
        parts = []
        for start in range(0, len(rgb), 64):
            resized = [
                np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
                for image in rgb[start : start + 64]
            ]
            x = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
            parts.append(self.model(normalise(x)).sigmoid())
        return torch.cat(parts)

    def recognised(self, found: Tensor, words: Sequence[Picture], *, colours_count: bool = False) -> NDArray[np.bool_]:
        """Return whether each image's label or subgroup is among its TOP likeliest tags, given probabilities [N, tags].

        Colours do not count unless `colours_count`, as nearly every image has two or three.
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
