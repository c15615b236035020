"""What the trainer sees of each image: its bucket, the crop, and the focus point that the crop is centred on."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.buckets import Focus, PlacedImage, Placement, Size
from lora_studio.dataset.manifest import Manifest
from lora_studio.dataset.marks import change_marks
from lora_studio.dataset.training_images import DatasetImage, read_images
from lora_studio.errors import InputError
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import records_folder


class ImageCrop(BaseModel):
    """An image of `size` px that is scaled to `scaled` and cropped to its bucket at `crop` (left, top).

    `cropped` is the share of its area that is cropped away, 0 to 1; `focus` is None if the crop is central.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    size: Size
    bucket: Size
    scaled: Size
    crop: Size
    cropped: float
    focus: Focus | None = None

    @classmethod
    def of(cls, image: DatasetImage, recipe: Recipe) -> ImageCrop:
        """Return the crop of an image in a run."""
        placement = image.placement_in(recipe)
        return cls(
            path=image.path,
            size=image.size,
            bucket=placement.bucket,
            scaled=placement.scaled,
            crop=placement.crop,
            cropped=PlacedImage(image.path, image.size, placement).cropped,
            focus=image.focus,
        )

    @property
    def placement(self) -> Placement:
        """Its bucket and crop, as the trainer has them."""
        return Placement(self.bucket, self.scaled, self.crop)

    @property
    def text(self) -> str:
        """The crop in a line: size, scaled size, bucket, and what is cropped away."""
        (width, height), (scaled_width, scaled_height), (left, top) = self.size, self.scaled, self.crop
        parts = [f"{width} × {height} px"]
        if self.scaled != self.size:
            parts.append(f"scaled to {scaled_width} × {scaled_height}")
        right, bottom = scaled_width - left - self.bucket[0], scaled_height - top - self.bucket[1]
        sides = {"left": left, "top": top, "right": right, "bottom": bottom}
        cut = [f"{pixels} px {side}" for side, pixels in sides.items() if pixels]
        parts.append(f"bucket {self.bucket[0]} × {self.bucket[1]}")
        parts.append(f"{self.cropped:.1%} cropped ({', '.join(cut)})" if cut else "nothing cropped")
        return ", ".join(parts)


def crops(dataset: Path | str, recipe: Recipe | None = None) -> list[ImageCrop]:
    """Return the crop of each readable image of `dataset` with a recipe's bucket settings, by default the guide's.

    Runs with `random_crop` draw other crops. Raises InputError if the folder does not exist.
    """
    chosen = recipe or Recipe()
    return [ImageCrop.of(image, chosen) for image in read_images(Path(dataset)).images]


def set_focus(dataset: Path | str, image: Path | str, focus: tuple[float, float] | None) -> None:
    """Centre the crop of an image of `dataset` on a point; None makes it central again.

    `image` is its path or its name in the dataset, `focus` are shares of width and height from the left and the top.
    The point is kept in marks.json, by the content of the image. Raises InputError or DiskFullError.
    """
    folder = Path(dataset)
    found = [known.path for known in read_images(folder).images if _is_named(known.path, folder, Path(image))]
    if len(found) != 1:
        problem = "is the name of several images" if found else "is not an image of a set"
        raise InputError(
            f"{str(image)!r} {problem} in {str(folder)!r}.",
            "Give its path from that folder, such as 10_saria/a.png.",
            code="no_image",
        )
    sha256, point = Manifest.of(folder).sha256_of(found[0]), Focus(*focus) if focus else None
    change_marks(records_folder(folder), lambda marks: marks.with_focus(sha256, point))


def _is_named(path: Path, folder: Path, image: Path) -> bool:
    """Return whether `image` is a path, a path from the folder, or the name of the image at `path`."""
    return image in (path, path.relative_to(folder), Path(path.name)) or image.resolve() == path.resolve()
