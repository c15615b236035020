"""Find a tagger by name: in the catalogue, in a folder, or in a Hub repository.

config.json decides the loader: with timm's `architecture` it is a WD tagger, with transformers' `model_type` "blip" a
BLIP captioner, and with a `vision_config` and a generating architecture an image-text model. Weights are read from
safetensors only, and code that comes with a model is never run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from lora_studio import demo, hub
from lora_studio.dataset.images.decode import file_sha256
from lora_studio.dataset.tagging.interface import Tagger
from lora_studio.dataset.tagging.labels import TAGS_FILE, WEIGHTS_FILE, Label, read_labels
from lora_studio.errors import InputError
from lora_studio.workspace.project import Home

Layout = Literal["wd", "blip", "image-text"]

# Everything but the weights: layout, tags, tokenizer and image processor.
CONFIG_FILES = ("*.json", "*.csv", "*.txt", "*.jinja", "*.model")
INDEX_FILE = "model.safetensors.index.json"  # of weights in several files
GENERATORS = ("ForConditionalGeneration", "ForCausalLM", "ForVision2Seq", "ForImageTextToText")
_BLOB = re.compile("[0-9a-f]{64}")  # the name of a large file in the Hub's cache is its SHA-256


@dataclass(frozen=True)
class CatalogueEntry:
    """A tagger with a short name: its Hub repository or folder, the kind of its output, and what it is good for."""

    location: str | Callable[[], Path]
    output_kind: Literal["tags", "sentences"]
    why: str
    takes_prompt: bool = False

    @property
    def is_embedded(self) -> bool:
        """True for a small model that ships with the studio."""
        return not isinstance(self.location, str)


CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType(
    {
        "wd14": CatalogueEntry(
            "SmilingWolf/wd-vit-tagger-v3",
            "tags",
            "Danbooru tags, which anime base models are trained on. WD v3 vit: fast, and a good choice for most sets.",
        ),
        "wd14-swinv2": CatalogueEntry(
            "SmilingWolf/wd-swinv2-tagger-v3",
            "tags",
            "Danbooru tags. WD v3 swinv2: the same size as vit, slightly more accurate, slower.",
        ),
        "wd14-convnext": CatalogueEntry(
            "SmilingWolf/wd-convnext-tagger-v3",
            "tags",
            "Danbooru tags. WD v3 convnext: the same size as vit; a second opinion to combine with it.",
        ),
        "wd14-vit-large": CatalogueEntry(
            "SmilingWolf/wd-vit-large-tagger-v3",
            "tags",
            "Danbooru tags. WD v3 vit-large: three times the size, more accurate.",
        ),
        "wd14-large": CatalogueEntry(
            "SmilingWolf/wd-eva02-large-tagger-v3",
            "tags",
            "Danbooru tags. WD v3 eva02-large: the most accurate and slowest of the series.",
        ),
        "blip": CatalogueEntry(
            "Salesforce/blip-image-captioning-base", "sentences", "One sentence, for photos and general images."
        ),
        "blip-large": CatalogueEntry(
            "Salesforce/blip-image-captioning-large",
            "sentences",
            "One longer and more accurate sentence; three times slower than blip.",
        ),
        "florence2": CatalogueEntry(
            "florence-community/Florence-2-base",
            "sentences",
            "Several sentences; a small model (0.5 GB) that is quick without a GPU, too.",
            takes_prompt=True,
        ),
        "florence2-large": CatalogueEntry(
            "florence-community/Florence-2-large",
            "sentences",
            "Several sentences; three times the size of florence2.",
            takes_prompt=True,
        ),
        "qwen2.5-vl": CatalogueEntry(
            "Qwen/Qwen2.5-VL-3B-Instruct",
            "sentences",
            "Follows a prompt of your own, in any language; 8 GB, for a GPU with 10 GB.",
            takes_prompt=True,
        ),
        "joycaption": CatalogueEntry(
            "fancyfeast/llama-joycaption-beta-one-hf-llava",
            "sentences",
            "Made for captions of training images, follows a prompt; 17 GB, for a GPU with 20 GB.",
            takes_prompt=True,
        ),
        "demo": CatalogueEntry(
            demo.tagger_path, "tags", "Ships with the studio and recognises emoji; nothing to download."
        ),
        "demo-captioner": CatalogueEntry(
            demo.captioner_path,
            "sentences",
            "Ships with the studio: one sentence for an emoji, correct for about half of them.",
        ),
    }
)


@dataclass(frozen=True)
class TaggerFiles:
    """All files of a tagger, not loaded. `labels` are its tags, one per output; a captioner has none.

    `prompt` and `max_new_tokens` are for image-text models: the instruction, empty for their own, and the limit of the
    answer.
    """

    name: str
    folder: Path
    layout: Layout
    labels: tuple[Label, ...]
    prompt: str = ""
    max_new_tokens: int = 200

    def with_prompt(self, prompt: str, max_new_tokens: int) -> TaggerFiles:
        """Return an image-text model with another prompt; other taggers have none and stay as they are."""
        if self.layout != "image-text":
            return self
        return replace(self, prompt=prompt.strip(), max_new_tokens=max_new_tokens)

    def content_hash(self) -> str:
        """Return a SHA-256 over all that affects predictions: files, independent of their folder's name, and prompt."""
        digest = hashlib.sha256()
        names = {path.name for pattern in CONFIG_FILES for path in self.folder.glob(pattern)}
        for name in sorted(names.union(weight_files(self.folder))):
            digest.update(f"{name} {_file_hash(self.folder / name)}\n".encode())
        if self.layout == "image-text":
            digest.update(f"{self.max_new_tokens} {self.prompt}\n".encode())
        return digest.hexdigest()

    def load(self, *, on_cpu: bool = False) -> Tagger:
        """Load the model onto the best device, or the CPU; raises InputError if it is broken."""
        if self.layout == "wd":
            from lora_studio.dataset.tagging.wd import WdTagger

            return WdTagger.load(self.folder, name=self.name, on_cpu=on_cpu)
        if self.layout == "image-text":
            from lora_studio.dataset.tagging.image_text import ImageTextCaptioner

            return ImageTextCaptioner.load(
                self.folder, name=self.name, prompt=self.prompt, max_new_tokens=self.max_new_tokens, on_cpu=on_cpu
            )
        from lora_studio.dataset.tagging.blip import BlipTagger

        return BlipTagger.load(self.folder, name=self.name, on_cpu=on_cpu)


def find_tagger(name: str, *, home: Home, on_progress: Callable[[str], None] = lambda message: None) -> TaggerFiles:
    """Find the files of a tagger; download them if need be. A folder may be given relative to the models folder.

    `on_progress(message)` is called before a download. Raises InputError if it is missing, incomplete or a pickle.
    """
    return _read_files(name, fetch_tagger(name, home=home, on_progress=on_progress))


def find_local_tagger(name: str, *, home: Home) -> TaggerFiles | None:
    """Find the files of a tagger without downloading anything; None if they are not all on this machine."""
    try:
        location = _location(name.strip(), home)
        folder = location if isinstance(location, Path) else hub.cached_files(location, (*CONFIG_FILES, WEIGHTS_FILE))
        return None if folder is None else _read_files(name, folder)
    except InputError:
        return None


def _read_files(name: str, folder: Path) -> TaggerFiles:
    layout = read_layout(folder)
    return TaggerFiles(name.strip(), folder, layout, read_labels(folder / TAGS_FILE) if layout == "wd" else ())


def fetch_tagger(name: str, *, home: Home, on_progress: Callable[[str], None] = lambda message: None) -> Path:
    """Return the folder of a tagger with all its files; a repository is downloaded unless it is cached."""
    location = _location(name.strip(), home)
    if isinstance(location, Path):
        return location
    on_progress(f"Downloading {location}")
    folder = hub.download(location, CONFIG_FILES)
    read_layout(folder, weights=False)
    return hub.download(location, (*CONFIG_FILES, *weight_files(folder)))


def weight_files(folder: Path) -> list[str]:
    """Return the names of a model's weight files: one, or those of its index. Raises InputError for a broken index."""
    index = folder / INDEX_FILE
    if not index.is_file():
        return [WEIGHTS_FILE]
    names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise InputError(f"{index} names no weight files.", "Download the tagger again.", code="tagger_broken")
    return names


def _file_hash(file: Path) -> str:
    """Return the SHA-256 of a file, which the name of a file in the Hub's cache is."""
    name = file.resolve().name
    return name if _BLOB.fullmatch(name) else file_sha256(file)


def _location(name: str, home: Home) -> str | Path:
    """Return the folder or the Hub repository of a tagger; raises InputError if it can be neither."""
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
                f"The tagger {location} is not a folder.",
                f"Give the folder that contains config.json and {WEIGHTS_FILE}.",
                code="tagger_layout",
            )
        return location
    if not hub.is_repo_name(location):
        raise InputError(
            f"There is no tagger {name!r}.",
            f"Give one of {', '.join(CATALOGUE)}, a Hub repository such as {CATALOGUE['wd14'].location}, or a folder.",
            code="tagger_missing",
        )
    return location


def read_layout(folder: Path, *, weights: bool = True) -> Layout:
    """Return the layout of the tagger in `folder`; raises InputError if a file is missing.

    Without `weights`, the weights may be missing.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise _missing_file_error(folder, "config.json")
    config = _read_json(file)
    layout: Layout
    if "architecture" in config:
        layout, needed = "wd", [TAGS_FILE]
    elif config.get("model_type") == "blip":
        layout, needed = "blip", ["preprocessor_config.json"]
        if not (folder / "vocab.txt").is_file():
            needed.append("tokenizer.json")
        if (
            folder / "processor_config.json"
        ).is_file():  # newer versions of transformers store the image processor there
            needed.remove("preprocessor_config.json")
    elif _is_image_text_model(config):
        layout, needed = "image-text", _missing_processor_files(folder)
    else:
        raise InputError(
            f"{folder.name} is neither a WD tagger for timm nor a captioner of transformers.",
            f"Use one of {', '.join(CATALOGUE)}, another of the WD v3 series, or an image-text model.",
            code="tagger_layout",
        )
    for name in [*needed, *(weight_files(folder) if weights else [])]:
        if not (folder / name).is_file():
            raise _missing_file_error(folder, name)
    return layout


def _is_image_text_model(config: dict[str, Any]) -> bool:
    """Return whether a configuration is that of a model that reads an image and writes a text."""
    names = config.get("architectures")
    writes = any(str(name).endswith(GENERATORS) for name in names) if isinstance(names, list) else False
    return writes and "vision_config" in config


def _missing_processor_files(folder: Path) -> list[str]:
    """Return which files of the processor are missing; of alternatives the usual one."""
    alternatives = (
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    )
    return [names[0] for names in alternatives if not any((folder / name).is_file() for name in names)]


def _read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object, empty if the file has another value; raises InputError if it cannot be read."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read: {error}.", "Download the tagger again.", code="tagger_broken"
        ) from error
    return content if isinstance(content, dict) else {}


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
        f"Download all its files, with {missing}.",
        code="tagger_incomplete",
    )


def _pickle_error(name: str) -> InputError:
    return InputError(
        f"{name} is a pickle, which can run any code when it is loaded.",
        f"Use the safetensors version of this tagger ({WEIGHTS_FILE}).",
        code="pickle",
    )
