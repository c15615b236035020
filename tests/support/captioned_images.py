"""A project with three captioned example images and a scan of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.manifest import Manifest, scan_stamps
from lora_studio.dataset.scan import scan
from lora_studio.example import EXAMPLE_IMAGES
from lora_studio.workspace.project import Project

TRIGGER = "inkstamp_hc"
CAPTIONS = {
    "guitar.png": f"{TRIGGER}, guitar, ink",
    "key.png": f"{TRIGGER}, key, ink",
    "umbrella.png": "umbrella, ink",
}


def add_captioned_images(project: Project, captions: Mapping[str, str] = CAPTIONS) -> Project:
    """Add example images with these captions, by default three, and a scan of them."""
    for name, caption in captions.items():
        image = project.images_dir / name
        shutil.copy(EXAMPLE_IMAGES / name, image)
        image.with_suffix(".txt").write_text(caption, "utf-8")
    images = find_images(project.dataset_dir)
    stamps = scan_stamps(images)
    Manifest.of_scan(project.dataset_dir, scan(project.dataset_dir), stamps).save_scan(project.path)
    return project
