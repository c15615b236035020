"""The captioner: a small BLIP that describes an image in one line, written as a transformers folder.

A vision transformer needs far more images than are available. So its vision tower is distilled from the trained tagger:
each patch has to predict the features of the tagger's convolutions there.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from demo_pack import colours, pictures, progress, tagger
from demo_pack.augment import augment
from demo_pack.pictures import Picture
from demo_pack.progress import Length, StepRng

SIZE, PATCH = tagger.SIZE, 16  # px
BATCH = 64
DISTILLATION_WEIGHT = 4.0  # of predicting the tagger's features; the head for it is not exported
AUGMENTATION = 0.5  # of the tagger's strength: a transformer of this size cannot learn from more
NAMING_WEIGHT = 0.5  # of classifying the emoji from the mean of the patches
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def caption(word: Picture, shades: Sequence[str]) -> str:
    """Return `subgroup, label, colours`, with words that the base knows too.

    The group comes first as the more reliable word; the label can then depend on image and group.
    """
    return ", ".join([word.subgroup, word.label, *shades])


def write_vocabulary(words: Sequence[Picture], path: Path) -> None:
    """Write a WordPiece vocabulary with all words of the captions, and letters and digits for other words."""
    known = {token for word in words for token in re.findall(r"[a-z0-9]+|[^a-z0-9\s]", caption(word, colours.NAMES))}
    pieces = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = [*SPECIAL, *pieces, *("##" + piece for piece in pieces), *sorted(known - set(pieces))]
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8", newline="\n")


def load_tokenizer(work: Path) -> BertTokenizer:
    """Build the tokenizer of the captions of the images in WORK; its vocabulary is written to WORK/captions.txt."""
    vocabulary = work / "captions.txt"
    write_vocabulary(tagger.usable_words(pictures.load(work, pictures.TAGGER_SETS)[0]), vocabulary)
    return BertTokenizer(str(vocabulary), do_lower_case=True, model_max_length=64)


def build(tokens: BertTokenizer) -> BlipForConditionalGeneration:
    """Build the model, 1.9 M weights; captions start with [CLS], so that prompts work as with the large model."""
    ids = {
        "bos_token_id": tokens.cls_token_id,
        "eos_token_id": tokens.sep_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    config = BlipConfig(
        vision_config={
            "hidden_size": 160,
            "intermediate_size": 480,
            "num_hidden_layers": 5,
            "num_attention_heads": 5,
            "image_size": SIZE,
            "patch_size": PATCH,
            "initializer_range": 0.02,
        },
        text_config={
            "vocab_size": len(tokens),
            "hidden_size": 128,
            "encoder_hidden_size": 160,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "sep_token_id": tokens.sep_token_id,
            **ids,
        },
        image_text_hidden_size=64,
    )
    return BlipForConditionalGeneration(config)


class Teacher:
    """The trained tagger, from which the vision tower is distilled. Raises SystemExit if it has no checkpoint."""

    def __init__(self, work: Path, tags: int, examples: Tensor, device: str) -> None:
        """Measure mean and deviation of the features on `examples`, images in 0..1 [B, 3, SIZE, SIZE]."""
        weights = progress.ema_weights("tagger", work)
        if weights is None:
            raise SystemExit("the captioner is distilled from the tagger: run the tagger stage first")
        self.model = tagger.build(tags)
        self.model.load_state_dict(weights["tagger"])
        self.model.eval().to(device, memory_format=torch.channels_last)
        seen = self._raw_features(examples.to(device))
        self.mean, self.deviation = seen.mean((0, 1)), seen.std((0, 1)).clamp_min(1e-4)
        self.width = seen.shape[-1]

    @torch.no_grad()
    def _raw_features(self, x: Tensor) -> Tensor:
        """Return the features of the last two levels at each patch, [B, patches, width]."""
        x = tagger.normalise(x).contiguous(memory_format=torch.channels_last)
        side = SIZE // PATCH
        levels = self.model.forward_intermediates(x, indices=2, intermediates_only=True)
        levels = [functional.interpolate(level.float(), (side, side), mode="bilinear") for level in levels]
        return torch.cat(levels, 1).flatten(2).transpose(1, 2)

    def features(self, x: Tensor) -> Tensor:
        """Return features of images in 0..1, normalised: [B, 3, SIZE, SIZE] -> [B, patches, width]."""
        return (self._raw_features(x) - self.mean) / self.deviation


def train(work: Path, *, length: Length, seed: int, device: str) -> None:
    """Train on augmented images of TAGGER_SETS to predict the tagger's features, to classify, and to caption."""
    torch.manual_seed(seed)
    words, rgba = pictures.load(work, pictures.TAGGER_SETS)
    images = torch.from_numpy(rgba[tagger.usable(words)])
    words = tagger.usable_words(words)
    tokens = load_tokenizer(work)
    identity, count = tagger.identities(words)
    examples, _ = augment(images[:: max(1, len(images) // 256)], SIZE, StepRng.of(seed, "examples", 0, 0.0), 0.5)
    teacher = Teacher(work, len(tagger.vocabulary(words)), examples, device)
    model = build(tokens).to(device)
    width = model.config.vision_config.hidden_size
    head = nn.Linear(width, teacher.width).to(device)
    namer = nn.Linear(width, count).to(device)

    def loss_of(rng: StepRng) -> tuple[Tensor, dict[str, float]]:
        chosen = rng.integers(len(words), BATCH)
        x, named = augment(images[chosen], SIZE, rng, AUGMENTATION * tagger.augmentation_strength(rng))
        shades = [[name for name, has in zip(colours.NAMES, row, strict=True) if has] for row in named.tolist()]
        texts = [caption(words[i], shades[k]) for k, i in enumerate(chosen.tolist())]
        text = tokens(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        labels = text.input_ids.masked_fill(text.attention_mask == 0, -100)
        x = x.to(device)
        with progress.autocast(device):
            out = model(
                pixel_values=(x - 0.5) / 0.5,
                input_ids=text.input_ids,
                attention_mask=text.attention_mask,
                labels=labels,
            )
            patches = out.last_hidden_state[:, 1:]
            seen, names = head(patches).float(), namer(patches.mean(1)).float()
            distillation = functional.mse_loss(seen, teacher.features(x))
        naming = functional.cross_entropy(names, identity[chosen].to(device))
        loss = out.loss.float() + DISTILLATION_WEIGHT * distillation + NAMING_WEIGHT * naming
        return loss, {"words": out.loss.item(), "distillation": distillation.item(), "naming": naming.item()}

    progress.train(
        "captioner",
        {"model": model, "head": head, "namer": namer},
        loss_of,
        work=work,
        length=length,
        seed=seed,
        lr=1e-3,
        weight_decay=0.05,
        warmup=300,
    )


def write(model: BlipForConditionalGeneration, tokens: BertTokenizer, folder: Path) -> None:
    """Write a folder for BlipProcessor and BlipForConditionalGeneration; weights in float16, loaded as float32."""
    images = BlipImageProcessor(
        size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    model.generation_config.max_new_tokens = 24
    model.half().save_pretrained(folder)
    model.float()
    config = folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")
    BlipProcessor(images, tokens).save_pretrained(folder)


@torch.no_grad()
def describe(folder: Path, rgb: NDArray[np.uint8]) -> list[str]:
    """Caption images, uint8 [N, H, W, 3], with the exported model."""
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = BlipProcessor.from_pretrained(folder)
    captions: list[str] = []
    for start in range(0, len(rgb), 64):
        inputs = processor(images=list(rgb[start : start + 64]), return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=24, num_beams=1)
        captions += processor.batch_decode(ids, skip_special_tokens=True)
    return captions
