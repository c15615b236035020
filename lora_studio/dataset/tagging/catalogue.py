"""Finding a tagger by its name: from the catalogue, a folder, or a Hub repository.

Which code reads it is decided by its config.json: timm's `architecture` is a WD tagger, transformers' `model_type`
"blip" a captioner. Weights are read from safetensors alone, and no code that comes with a model is ever run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from lora_studio import demo, hub
from lora_studio.dataset.images.decode import file_sha256
from lora_studio.dataset.tagging.interface import Tagger
from lora_studio.dataset.tagging.labels import TAGS_FILE, WEIGHTS_FILE, Label, read_labels
from lora_studio.errors import InputError
from lora_studio.workspace.project import Home

Layout = Literal["wd", "blip"]

# All but the weights: what tells the layout, tags, tokenizer and image processor.
CONFIG_FILES = ("*.json", "*.csv", "*.txt")


@dataclass(frozen=True)
class CatalogueEntry:
    """A tagger that has a short name: its Hub repository or its folder, what it says, and what it is good for."""

    location: str | Callable[[], Path]
    output_kind: Literal["tags", "sentences"]
    why: str


CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType(
    {
        "wd14": CatalogueEntry(
            "SmilingWolf/wd-vit-tagger-v3",
            "tags",
            "Danbooru tags, as anime bases were trained on: WD v3 vit, the fast size, good for most.",
        ),
        "wd14-swinv2": CatalogueEntry(
            "SmilingWolf/wd-swinv2-tagger-v3",
            "tags",
            "Danbooru tags by WD v3 swinv2: as large, a little surer, slower.",
        ),
        "wd14-convnext": CatalogueEntry(
            "SmilingWolf/wd-convnext-tagger-v3",
            "tags",
            "Danbooru tags by WD v3 convnext: as large, often of other mind.",
        ),
        "wd14-vit-large": CatalogueEntry(
            "SmilingWolf/wd-vit-large-tagger-v3",
            "tags",
            "Danbooru tags by WD v3 vit-large: three times the size, surer.",
        ),
        "wd14-large": CatalogueEntry(
            "SmilingWolf/wd-eva02-large-tagger-v3",
            "tags",
            "Danbooru tags by WD v3 eva02-large: the most accurate and slowest of the series.",
        ),
        "blip": CatalogueEntry(
            "Salesforce/blip-image-captioning-base", "sentences", "A sentence for photographs and anything general."
        ),
        "blip-large": CatalogueEntry(
            "Salesforce/blip-image-captioning-large", "sentences", "A longer sentence, more exact, three times slower."
        ),
        "demo": CatalogueEntry(demo.tagger_path, "tags", "Ships with the studio and knows emoji; needs no download."),
        "demo-captioner": CatalogueEntry(
            demo.captioner_path, "sentences", "Ships with the studio: a line for an emoji, right for every second one."
        ),
    }
)


@dataclass(frozen=True)
class TaggerFiles:
    """A tagger's files, complete; no model is loaded. `labels` are its tags, one an output, none for a captioner."""

    name: str
    folder: Path
    layout: Layout
    labels: tuple[Label, ...]

    def content_hash(self) -> str:
        """SHA-256 over all files that decide what the model says, whatever their folder is called."""
        digest = hashlib.sha256()
        for name in sorted(
            {path.name for pattern in CONFIG_FILES for path in self.folder.glob(pattern)} | {WEIGHTS_FILE}
        ):
            digest.update(f"{name} {file_sha256(self.folder / name)}\n".encode())
        return digest.hexdigest()

    def load(self) -> Tagger:
        """Load the model onto the best device; raises InputError if it is broken."""
        if self.layout == "wd":
            from lora_studio.dataset.tagging.wd import WdTagger

            return WdTagger.load(self.folder, name=self.name)
        from lora_studio.dataset.tagging.blip import BlipTagger

        return BlipTagger.load(self.folder, name=self.name)


def find_tagger(name: str, *, home: Home, on_progress: Callable[[str], None] = lambda message: None) -> TaggerFiles:
    """Find, and fetch where needed, the files of the tagger called `name`. A folder may lie in the models folder.

    `on_progress(message)` tells what takes time. Raises InputError if it is missing, incomplete or a pickle.
    """
    folder = fetch_tagger(name, home=home, on_progress=on_progress)
    layout = read_layout(folder)
    return TaggerFiles(name.strip(), folder, layout, read_labels(folder / TAGS_FILE) if layout == "wd" else ())


def fetch_tagger(name: str, *, home: Home, on_progress: Callable[[str], None] = lambda message: None) -> Path:
    """The folder of the tagger called `name`, complete; a repository is downloaded unless it is in the cache."""
    name = name.strip()
    location: str | Path = name
    if (known := CATALOGUE.get(name.lower())) is not None:
        location = known.location if isinstance(known.location, str) else known.location()
    else:
        found = [path for path in (home.models / name, Path(name).expanduser()) if name and path.exists()]
        location = found[0].resolve() if found else name
    if isinstance(location, Path):
        if location.suffix.lower() in hub.PICKLE_SUFFIXES:
            raise _pickle_error(location.name)
        if not location.is_dir():
            raise InputError(
                f"{location} is no folder.",
                f"Give the folder that holds config.json and {WEIGHTS_FILE}.",
                code="tagger_layout",
            )
        return location
    if not hub.is_repo_name(location):
        raise InputError(
            f"There is no tagger {name!r}.",
            f"Give one of {', '.join(CATALOGUE)}; a Hub repository like {CATALOGUE['wd14'].location}, or a folder.",
            code="tagger_missing",
        )
    on_progress(f"Fetching {location}")
    read_layout(hub.download(location, CONFIG_FILES), weights=False)
    return hub.download(location, (*CONFIG_FILES, WEIGHTS_FILE))


def read_layout(folder: Path, *, weights: bool = True) -> Layout:
    """Which code reads the tagger in `folder`; raises InputError if a file is missing (with or without `weights`)."""
    file = folder / "config.json"
    if not file.is_file():
        raise _missing_file_error(folder, "config.json")
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read: {error}.", "Download the tagger anew.", code="tagger_broken"
        ) from error
    config = config if isinstance(config, dict) else {}
    layout: Layout
    if "architecture" in config:
        layout, needed = "wd", [TAGS_FILE]
    elif config.get("model_type") == "blip":
        layout, needed = "blip", ["preprocessor_config.json"]
        if not (folder / "vocab.txt").is_file():
            needed.append("tokenizer.json")
        if (folder / "processor_config.json").is_file():  # newer transformers keep the image processor in there
            needed.remove("preprocessor_config.json")
    else:
        raise InputError(
            f"{folder.name} is neither a WD tagger for timm nor a BLIP captioner.",
            f"Use one of {', '.join(CATALOGUE)}, another of the WD v3 series, or a BLIP captioning model.",
            code="tagger_layout",
        )
    for name in [*needed, *([WEIGHTS_FILE] if weights else [])]:
        if not (folder / name).is_file():
            raise _missing_file_error(folder, name)
    return layout


def _missing_file_error(folder: Path, missing: str) -> InputError:
    others = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in hub.PICKLE_SUFFIXES)
    if missing == WEIGHTS_FILE and others:
        return _pickle_error(others[0])
    if missing == WEIGHTS_FILE and any(folder.glob("*.onnx")):
        return InputError(
            f"The tagger in {folder} is in ONNX format.",
            f"Use its {WEIGHTS_FILE}; the taggers of the WD v3 series have one.",
            code="tagger_format",
        )
    return InputError(
        f"The tagger in {folder} has no {missing}.",
        f"Download it whole: {missing} is missing.",
        code="tagger_incomplete",
    )


def _pickle_error(name: str) -> InputError:
    return InputError(
        f"{name} is a pickle, which can run any program when it is opened.",
        f"Use the safetensors version of this tagger ({WEIGHTS_FILE}).",
        code="pickle",
    )
