"""The captioner: a small BLIP that says in one line what a picture shows, written as a transformers folder."""

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
from demo_pack.disguise import disguise
from demo_pack.pictures import Picture
from demo_pack.progress import Draw, Length

SIZE, PATCH = 112, 16  # px
BATCH = 48
TAG_WEIGHT = 0.02  # of the tags that the vision tower learns beside the captions; that head is not kept
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def caption(word: Picture, shades: Sequence[str]) -> str:
    """`label, subgroup, colours`: one line, in words that the base knows too."""
    return ", ".join([word.label, word.subgroup, *shades])


def write_vocabulary(words: Sequence[Picture], path: Path) -> None:
    """A WordPiece vocabulary: every word of the captions, and letters and digits for all others."""
    known = {token for word in words for token in re.findall(r"[a-z0-9]+|[^a-z0-9\s]", caption(word, colours.NAMES))}
    pieces = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = [*SPECIAL, *pieces, *("##" + piece for piece in pieces), *sorted(known - set(pieces))]
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8", newline="\n")


def load_tokenizer(work: Path) -> BertTokenizer:
    """The tokenizer of the captions that the pictures in WORK have; its vocabulary is left in WORK/captions.txt."""
    vocabulary = work / "captions.txt"
    write_vocabulary(tagger.learned(pictures.load(work, pictures.SEEING_SETS)[0]), vocabulary)
    return BertTokenizer(str(vocabulary), do_lower_case=True, model_max_length=64)


def build(tokens: BertTokenizer) -> BlipForConditionalGeneration:
    """1.9 M weights; the start of a caption is [CLS], so that prompts work as with the large model."""
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


def train(work: Path, *, length: Length, seed: int, device: str) -> None:
    """Train on disguised pictures of the seeing sets, for captions and tags together."""
    torch.manual_seed(seed)
    words, rgba = pictures.load(work, pictures.SEEING_SETS)
    images = torch.from_numpy(rgba[tagger.usable(words)])
    words = tagger.learned(words)
    tokens = load_tokenizer(work)
    tags = tagger.vocabulary(words)
    table = tagger.truth(words, [name for name, _ in tags])
    model = build(tokens).to(device)
    head = nn.Linear(model.config.vision_config.hidden_size, len(tags)).to(device)

    def loss_of(draw: Draw) -> tuple[Tensor, dict[str, float]]:
        chosen = draw.integers(len(words), BATCH)
        x, named = disguise(images[chosen], SIZE, draw)
        shades = [[name for name, has in zip(colours.NAMES, row, strict=True) if has] for row in named.tolist()]
        texts = [caption(words[i], shades[k]) for k, i in enumerate(chosen.tolist())]
        text = tokens(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        labels = text.input_ids.masked_fill(text.attention_mask == 0, -100)
        wanted = table[chosen]
        wanted[:, : len(colours.NAMES)] = named.float()
        with progress.autocast(device):
            out = model(
                pixel_values=((x - 0.5) / 0.5).to(device),
                input_ids=text.input_ids,
                attention_mask=text.attention_mask,
                labels=labels,
            )
            logits = head(out.last_hidden_state.mean(1)).float()
        told = functional.binary_cross_entropy_with_logits(logits, wanted.to(device), reduction="sum") / BATCH
        return out.loss.float() + TAG_WEIGHT * told, {"words": out.loss.item(), "tags": told.item()}

    progress.train(
        "captioner",
        {"model": model, "head": head},
        loss_of,
        work=work,
        length=length,
        seed=seed,
        lr=1e-3,
        weight_decay=0.05,
        warmup=300,
    )


def write(model: BlipForConditionalGeneration, tokens: BertTokenizer, folder: Path) -> None:
    """A folder that BlipProcessor and BlipForConditionalGeneration load; weights in float16, loaded as float32."""
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
    """Captions of pictures, uint8 [N, H, W, 3], by the written model."""
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = BlipProcessor.from_pretrained(folder)
    said: list[str] = []
    for start in range(0, len(rgb), 64):
        inputs = processor(images=list(rgb[start : start + 64]), return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=24, num_beams=1)
        said += processor.batch_decode(ids, skip_special_tokens=True)
    return said
