"""Choose the model whose features pictures are compared by. Nothing is downloaded.

By default it is the tagger that has tagged the images. A setting can name CLIP, SigLIP or DINOv2, or another tagger.
Where neither is on this machine, thumbnails are compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lora_studio import hub
from lora_studio.dataset.images.decode import file_sha256
from lora_studio.dataset.tagging.cache import FEATURES, TAGS, cache_key, cached_predictions
from lora_studio.dataset.tagging.catalogue import TaggerFiles, find_local_tagger
from lora_studio.dataset.tagging.interface import ModelFiles, Tagger
from lora_studio.dataset.tagging.labels import Label
from lora_studio.errors import InputError
from lora_studio.measures.thumbnails import ThumbnailModel
from lora_studio.workspace.project import Home

# Families of image encoders, by the model_type of their config.json.
VISION_TYPES = frozenset(
    {"clip", "clip_vision_model", "siglip", "siglip_vision_model", "dinov2", "dinov2_with_registers"}
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # newer versions of transformers use the second
VISION_FILES = ("config.json", *PROCESSOR_FILES, "*.safetensors", "*.safetensors.index.json")
MIN_TAGGED_SHARE = 0.5  # of the training images: with fewer, a copied image is likely to be one without features


@dataclass(frozen=True)
class VisionFiles:
    """All files of a CLIP, SigLIP or DINOv2 model, not loaded."""

    name: str
    folder: Path
    labels: tuple[Label, ...] = ()

    def content_hash(self) -> str:
        """Return a SHA-256 over all files that affect features, independent of the name of their folder."""
        digest = hashlib.sha256()
        for file in sorted({path for pattern in VISION_FILES for path in self.folder.glob(pattern)}):
            digest.update(f"{file.name} {file_sha256(file)}\n".encode())
        return digest.hexdigest()

    def load(self, *, on_cpu: bool = False) -> Tagger:
        """Load the model onto the best device, or the CPU; raises InputError if it is broken."""
        from lora_studio.measures.vision import VisionModel

        return VisionModel.load(self.folder, name=self.name, on_cpu=on_cpu)


def feature_model(name: str, sha256s: Collection[str], home: Home) -> ModelFiles:
    """Return the model named by the setting, or the tagger of the images with these SHA-256s, else thumbnails.

    The tagger must have tagged at least half of them, and still be on this machine.

    Raises InputError if the named model is not on this machine, or is of another kind.
    """
    if name.strip():
        return named_feature_model(name, home)
    known = cached_predictions(home, sha256s)
    tagged = sum(sha256 in known.predictions for sha256 in sha256s) if known is not None else 0
    if known is None or tagged < MIN_TAGGED_SHARE * len(sha256s):
        return ThumbnailModel()
    tagger = find_local_tagger(known.name, home=home)
    # Features of another version of the tagger cannot be compared with those in the cache.
    if tagger is None or cache_key(tagger) != known.key:
        return ThumbnailModel()
    return tagger


def named_feature_model(name: str, home: Home) -> ModelFiles:
    """Return the files of a model by its name: a folder, one in the models folder, a cached repository, or a tagger.

    Raises InputError if it is not on this machine, or is of another kind.
    """
    name = name.strip()
    if (tagger := find_local_tagger(name, home=home)) is not None:
        return tagger
    folders = [path for path in (home.models / name, Path(name).expanduser()) if path.is_dir()]
    folder = folders[0].resolve() if folders else None
    if folder is None and hub.is_repo_name(name):
        folder = hub.cached_files(name, VISION_FILES)
    if folder is None:
        remedy = f"Download it with `hf download {name}`" if hub.is_repo_name(name) else "Give the folder of a model"
        raise InputError(
            f"feature_model is {name!r}, which is not on this machine.",
            f"{remedy}, or leave the setting empty: then the tagger of the dataset is used.",
            code="feature_model_missing",
        )
    return _vision_files(name, folder)


def cache_kind(files: ModelFiles) -> str:
    """Return the kind of the cache that a model's features are in."""
    return TAGS if isinstance(files, TaggerFiles) else FEATURES


def _vision_files(name: str, folder: Path) -> VisionFiles:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        config = {}
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in VISION_TYPES:
        raise InputError(
            f"feature_model is {name!r}: {folder} is neither CLIP, SigLIP nor DINOv2 in the transformers layout, nor a "
            "tagger.",
            "Use for example openai/clip-vit-large-patch14, google/siglip-base-patch16-224 or facebook/dinov2-base.",
            code="feature_model_kind",
        )
    has_processor = any((folder / file).is_file() for file in PROCESSOR_FILES)
    if not any(folder.glob("*.safetensors")) or not has_processor:
        raise InputError(
            f"feature_model is {name!r}: {folder} has no *.safetensors or no {PROCESSOR_FILES[0]}.",
            "Download all its files; weights in other formats are not read.",
            code="feature_model_incomplete",
        )
    return VisionFiles(name, folder)
