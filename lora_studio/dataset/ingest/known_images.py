"""The images that a dataset already has or had set aside, to be found by content."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.dataset.curate import rejected_images
from lora_studio.dataset.images.decode import file_sha256, find_images
from lora_studio.dataset.ingest.sources import file_key
from lora_studio.workspace.project import SET_FOLDER


@dataclass
class KnownImages:
    """The images in the dataset and the rejected ones, to be found by content. Files are hashed when needed."""

    reasons: dict[Path, str] = field(default_factory=dict)
    by_size: dict[int, list[Path]] = field(default_factory=dict)
    hashes: dict[Path, str] = field(default_factory=dict)
    names: dict[Path, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, images_dir: Path, rejected_dir: Path) -> KnownImages:
        """Return the images of `images_dir`, of the sets beside it, and of the rejected folder."""
        known = cls()
        sets = [path for path in images_dir.parent.iterdir() if SET_FOLDER.match(path.name) and path.is_dir()]
        for folder in dict.fromkeys([images_dir, *sorted(sets)]):
            for image in find_images(folder):
                known.add(image)
        for entry in rejected_images(rejected_dir):
            known.add(rejected_dir / entry.files[0].name, f"set aside earlier: {entry.reason}")
        return known

    def add(self, image: Path, reason: str = "") -> None:
        """Add an image; `reason` is reported if it is imported again."""
        self.reasons[image] = reason or f"already in the dataset as {image.name!r}"
        self.by_size.setdefault(image.stat().st_size, []).append(image)

    def find(self, file: Path) -> tuple[Path, str] | None:
        """Return the image with the same bytes as `file`, and the reason to skip `file`."""
        same_size = self.by_size.get(file.stat().st_size)
        if not same_size:
            return None
        sha256 = file_sha256(file)
        for image in same_size:
            if image not in self.hashes:
                self.hashes[image] = file_sha256(image)
            if self.hashes[image] == sha256:
                return image, self.reasons[image]
        return None

    def stems(self, folder: Path) -> set[str]:
        """Return the stems of the files in `folder`, which is made if missing."""
        if folder not in self.names:
            folder.mkdir(parents=True, exist_ok=True)
            self.names[folder] = {file_key(path) for path in folder.iterdir()}
        return self.names[folder]
