"""Find the base models that other programs have on this machine, which are used where they are.

Only headers are read, and what they say is cached by path, size and time of change, so that a folder of 200 checkpoints
is looked through in milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from lora_studio.errors import InputError, StudioError
from lora_studio.files import write_bytes
from lora_studio.hub import PICKLE_SUFFIXES
from lora_studio.models.catalogue import BASES, find_base
from lora_studio.models.locate import Source, cached_base, pickle_error, read_base_config, resolve_base
from lora_studio.workspace.project import Home

FOLDERS_VARIABLE = "LORA_STUDIO_MODEL_DIRS"
MAX_DEPTH = 6  # of subfolders that are looked into
STUDIO, HUB_CACHE = "the studio", "the Hub's cache"


@dataclass(frozen=True)
class Program:
    """A program that keeps checkpoints: names of its usual install folders, and of its model folders in these."""

    name: str
    folders: tuple[str, ...]
    models: tuple[str, ...]


PROGRAMS = (
    Program("AUTOMATIC1111", ("stable-diffusion-webui",), ("models/Stable-diffusion",)),
    Program("Forge", ("stable-diffusion-webui-forge", "stable-diffusion-webui-reForge"), ("models/Stable-diffusion",)),
    Program(
        "ComfyUI",
        ("ComfyUI", "comfy/ComfyUI", "ComfyUI_windows_portable/ComfyUI"),
        ("models/checkpoints", "models/diffusers"),
    ),
    Program("kohya_ss", ("kohya_ss",), ("models",)),
)
PARENTS = ("", "Documents", "Desktop", "Downloads", "ai", "AI")  # of install folders, in the user's home
EXTRA_PATHS = "extra_model_paths.yaml"  # of ComfyUI
EXTRA_KINDS = ("checkpoints", "diffusers")


class Model(BaseModel):
    """A base model of the catalogue, or one that was found on this machine.

    `base` is what to give as the base: the name in the catalogue, a path, or the repository of one in the Hub's cache.
    `place` says where it was found; empty: it must be downloaded. `size_gb` (10**9 bytes) is None if it is not known.
    `problem` says why it cannot be used; empty for an SDXL.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    base: str
    place: str
    path: Path | None = None
    size_gb: float | None = None
    problem: str = ""
    prediction_type: str = "epsilon"
    zero_terminal_snr: bool = False

    @property
    def location(self) -> str:
        """The place as text: "on this machine", "on this machine, ComfyUI" or "download, 6.9 GB"."""
        if self.place:
            return "on this machine" + (f", {self.place}" if self.place not in (STUDIO, HUB_CACHE) else "")
        return "download" if self.size_gb is None else f"download, {self.size_gb:.1f} GB"


class _Read(BaseModel):
    """What a header says, and the size and time of change of the file that it was read from."""

    size: int
    changed: int
    problem: str
    prediction_type: str
    zero_terminal_snr: bool


_CACHE = TypeAdapter(dict[str, _Read])


def catalogue_models(home: Home) -> list[Model]:
    """Return the bases of the catalogue, with where they are on this machine."""
    found = []
    for base in BASES.values():
        source = cached_base(resolve_base(base.name, home))
        place = "" if source is None else (STUDIO if base.is_embedded else HUB_CACHE)
        found.append(
            Model(
                name=base.name,
                base=base.name,
                place=place,
                path=None if source is None else Path(source.location),
                size_gb=base.download_gb,
                prediction_type=base.prediction_type,
                zero_terminal_snr=base.zero_terminal_snr,
            )
        )
    return found


def find_models(home: Home) -> list[Model]:
    """Return the checkpoints on this machine, by name; those of the catalogue in the Hub's cache are left out."""
    reader = _Reader(home)
    seen: set[Path] = set()
    found = []
    for place, folder in model_folders(home):
        for path in _checkpoints(folder):
            if (resolved := path.resolve()) not in seen:
                seen.add(resolved)
                found.append(reader.read(path, place))
    found += _in_hub_cache(reader)
    reader.save()
    return sorted(found, key=lambda base: base.name.lower())


def model_folders(home: Home) -> Iterator[tuple[str, Path]]:
    """Yield the folders to look through, with the program that they belong to."""
    yield STUDIO, home.models
    for given in given_folders(home):
        yield from _folders_of_install(given, "") or [(given.name, given)]
    for parent in PARENTS:
        for program in PROGRAMS:
            for name in program.folders:
                yield from _folders_of_install(Path.home() / parent / name, program.name)


def given_folders(home: Home) -> list[Path]:
    """Return the folders that the user names, in LORA_STUDIO_MODEL_DIRS or line by line in model-folders.txt."""
    texts = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
    with suppress(OSError):
        texts += home.model_folders.read_text("utf-8").splitlines()
    return [Path(os.path.expandvars(text.strip())).expanduser() for text in texts if text.strip()]


def _folders_of_install(folder: Path, name: str) -> list[tuple[str, Path]]:
    """Return the model folders of a program that is installed in `folder`; any program if `name` is empty."""
    found = [
        (program.name, folder / models)
        for program in PROGRAMS
        if name in ("", program.name)
        for models in program.models
        if (folder / models).is_dir()
    ]
    return found + [("ComfyUI", extra) for extra in _extra_paths(folder / EXTRA_PATHS)]


def _extra_paths(file: Path) -> list[Path]:
    """Return the model folders that ComfyUI's extra_model_paths.yaml names; none if it cannot be read."""
    try:
        sections = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    found = []
    for section in sections.values() if isinstance(sections, dict) else ():
        if not isinstance(section, dict):
            continue
        root = file.parent / Path(os.path.expandvars(str(section.get("base_path") or "."))).expanduser()
        for kind in EXTRA_KINDS:
            found += [root / line.strip() for line in str(section.get(kind) or "").splitlines() if line.strip()]
    return found


def _checkpoints(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Yield the checkpoints and the models in diffusers layout in a folder and below."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        try:
            is_folder = entry.is_dir()
        except OSError:
            continue
        if not is_folder:
            if path.suffix.lower() in (".safetensors", ".ckpt"):
                yield path
        elif (path / "model_index.json").is_file():
            yield path
        elif depth < MAX_DEPTH and not entry.name.startswith("."):
            yield from _checkpoints(path, depth + 1)


def _in_hub_cache(reader: _Reader) -> Iterator[Model]:
    """Yield the SDXL models in the Hub's cache that are complete and not in the catalogue."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError, ValueError):
        return
    for repo in repos:
        if repo.repo_type != "model" or find_base(repo.repo_id) is not None:
            continue
        source = cached_base(Source(repo.repo_id, "repo", repo.repo_id))
        if source is not None:
            base = reader.read(Path(source.location), HUB_CACHE, repo.repo_id)
            if not base.problem:
                yield base


class _Reader:
    """Reads headers, or what the cache has of them."""

    def __init__(self, home: Home) -> None:
        self.file = home.cache / "found_bases.json"
        self.known = self._load()
        self.current: dict[str, _Read] = {}

    def _load(self) -> dict[str, _Read]:
        try:
            return _CACHE.validate_json(self.file.read_bytes())
        except (OSError, ValidationError):
            return {}

    def read(self, path: Path, place: str, repo: str = "") -> Model:
        """Return what a checkpoint is."""
        is_folder = path.is_dir()
        try:
            stat = (path / "model_index.json" if is_folder else path).stat()
            size, changed = stat.st_size, stat.st_mtime_ns
        except OSError:
            size, changed = 0, 0
        known = self.known.get(str(path))
        if known is None or (known.size, known.changed) != (size, changed):
            known = _read(path, size, changed)
        self.current[str(path)] = known
        return Model(
            name=repo or path.name,
            base=repo or str(path),
            place=place,
            path=path,
            size_gb=round((_folder_size(path) if is_folder else size) / 1e9, 2),
            problem=known.problem,
            prediction_type=known.prediction_type,
            zero_terminal_snr=known.zero_terminal_snr,
        )

    def save(self) -> None:
        """Write the cache, if it changed."""
        if self.current != self.known:
            with suppress(StudioError, OSError):  # it is read again the next time
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(self.file, _CACHE.dump_json(self.current))


def _read(path: Path, size: int, changed: int) -> _Read:
    problem, prediction_type, zero_terminal_snr = "", "epsilon", False
    try:
        if path.suffix.lower() in PICKLE_SUFFIXES and not path.is_dir():
            raise pickle_error(path.name)
        config = read_base_config(Source(path.name, "folder" if path.is_dir() else "file", str(path)))
        prediction_type, zero_terminal_snr = config.prediction_type, config.zero_terminal_snr
    except InputError as error:
        problem = error.message
    return _Read(
        size=size,
        changed=changed,
        problem=problem,
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
    )


def _folder_size(folder: Path) -> int:
    """Return the bytes of the weights in a folder in diffusers layout."""
    return sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
