"""Decode image files safely, find their issues, and make thumbnails.

Pillow decodes every file with a fixed list of formats and a limit on the number of pixels, whatever the file's name;
HEIC, which phones write, needs the package pillow-heif. The result is upright RGB in sRGB: EXIF orientation applied,
transparency composited on white, the first frame of an animation, 16 bits per channel scaled to 8.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.images.convert import is_transparent, to_rgb
from lora_studio.dataset.images.decode_pool import POOL, DecodeFailed, OverLimit
from lora_studio.errors import InputError
from lora_studio.files import write_atomic
from lora_studio.workspace.project import SET_FOLDER

SUFFIXES_BY_FORMAT = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES_BY_FORMAT.values() for suffix in suffixes)

MASK_ENDING = "-masklabel"  # end of the stem of a mask file, as in OneTrainer

MAX_PIXELS = 100_000_000
MAX_PIXELS_HERE = 32_000_000  # of an image that is decoded in this process
MAX_BYTES_HERE = 64 * 2**20  # of a file that is opened in this process: some headers take as much memory as the file
COSTLY_FORMATS = frozenset(("TIFF", "AVIF", "HEIF"))  # whose decoders take any memory and time that a file asks for
JPEG_SCAN = b"\xff\xda"  # marker (ITU-T T.81) that begins a scan, and that compressed data cannot contain
MAX_SCANS = 50  # of a JPEG that is decoded in this process; a progressive one has about 10
MIN_SIDE = 512  # px; the guide's lower bound
MAX_ASPECT = 2.0  # longer side / shorter side

ORIENTATION_TAG = 0x0112  # EXIF
EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Issue(BaseModel):
    """An issue of an image that the user should check. `code` is stable, `message` is for display.

    Codes: unreadable, wrong_extension, too_small, extreme_aspect, animated, alpha, deep_color, cmyk; found in the
    pixels (quality.py): blurred, dark, bright, compressed, border, bar; of a whole dataset: mixed_resolutions.
    """

    model_config = ConfigDict(frozen=True)

    code: str
    message: str


class ImageInfo(BaseModel):
    """Size, hash and issues of an image file. Width and height are those of the upright image, 0 if unreadable."""

    model_config = ConfigDict(frozen=True)

    path: Path
    width: int
    height: int
    sha256: str
    issues: list[Issue] = []

    @property
    def readable(self) -> bool:
        """True if the image could be decoded."""
        return self.width > 0


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image file. `image` is upright RGB, possibly reduced; `size` is the full upright (width, height).

    `alpha` (mode L) is set if it was requested and any pixel is transparent; `quantization` is the luminance table of a
    JPEG.
    """

    image: Image.Image
    size: tuple[int, int]
    format: str
    animated: bool
    transparent: bool
    high_bit_depth: bool
    cmyk: bool
    alpha: Image.Image | None = None
    quantization: tuple[int, ...] = ()


def find_images(folder: Path) -> list[Path]:
    """Return the image files, by suffix, in `folder` and in its `N_name` subfolders, in order of name.

    Hidden files and masks (NAME-masklabel.png) are left out. Raises InputError if the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {str(folder)!r}.", "Give a folder with images.", code="no_folder")
    found = images_in(folder)
    for sub in sorted(folder.iterdir()):
        if SET_FOLDER.match(sub.name) and sub.is_dir():
            found += images_in(sub)
    return found


def images_in(folder: Path) -> list[Path]:
    """Return the image files, by suffix, in a folder itself, in order of name, without masks."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if is_training_image(entry.name) and entry.is_file())
    return list(_paths(folder, tuple(names)))


@lru_cache(maxsize=16)
def _paths(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the paths of a folder's files; cached, as making them takes twice as long as listing the folder."""
    return tuple(folder / name for name in names)


def is_training_image(name: str) -> bool:
    """Return whether a file is an image by its name, and not a mask."""
    return is_image_name(name) and not name.rpartition(".")[0].endswith(MASK_ENDING)


def is_image_name(name: str) -> bool:
    """Return whether a file name has the suffix of an image and is not hidden."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


@cache
def pillow_formats() -> tuple[str, ...]:
    """Return the formats that Pillow may try: those of SUFFIXES_BY_FORMAT, HEIF only if pillow-heif is installed."""
    if find_spec("pillow_heif") is None:
        return tuple(name for name in SUFFIXES_BY_FORMAT if name != "HEIF")
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return tuple(SUFFIXES_BY_FORMAT)


def read_image(path: Path) -> Image.Image:
    """Return the image as upright RGB; raises InputError if it cannot be decoded completely."""
    return decode(path).image


def decode(path: Path, *, min_side: int | None = None, with_alpha: bool = False) -> DecodedImage:
    """Decode an image file; one that could take much memory or time in a process with limits, see `decode_pool`.

    With `min_side`, a JPEG and an image that is decoded in another process are reduced, to sides of at least that many
    pixels, which is several times faster; the whole file is still read, so that truncation is detected. With
    `with_alpha`, the alpha channel is returned separately, instead of compositing the image on white. Raises InputError
    if the file cannot be decoded, or not within the limits.
    """
    try:
        with _reading(path):
            if path.stat().st_size <= MAX_BYTES_HERE:
                with _opened(path) as image:
                    if not _is_costly(path, image):
                        return _decode(image, min_side, with_alpha)
    except MemoryError as error:
        raise _unreadable(path, "there is not enough memory") from error
    return _decode_in_pool(path, min_side, with_alpha)


def decode_here(path: Path, *, min_side: int | None = None, with_alpha: bool = False) -> DecodedImage:
    """Decode an image file as `decode` does, but always here, and reduce all formats; raises MemoryError too."""
    with _reading(path), _opened(path) as image:
        decoded = _decode(image, min_side, with_alpha)
    factor = min(decoded.image.size) // min_side if min_side else 1
    return replace(decoded, image=decoded.image.reduce(factor)) if factor > 1 else decoded


def _decode_in_pool(path: Path, min_side: int | None, with_alpha: bool) -> DecodedImage:
    """Return what `decode_here` returns in a process with limits."""
    try:
        fields, pixels, alpha = POOL.decode(path.absolute(), {"min_side": min_side, "with_alpha": with_alpha})
    except DecodeFailed as error:
        raise InputError(error.message, error.remedy, code=error.code) from error
    except OverLimit as error:
        raise _unreadable(path, str(error)) from error
    size = tuple(fields.pop("image_size"))
    fields |= {"size": tuple(fields["size"]), "quantization": tuple(fields["quantization"])}
    layer = Image.frombytes("L", size, alpha) if alpha else None
    return DecodedImage(image=Image.frombytes("RGB", size, pixels), alpha=layer, **fields)


def _opened(path: Path) -> Image.Image:
    """Open an image file and check its size. Pillow's other formats are never tried: some run programs."""
    image = Image.open(path, formats=pillow_formats())
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _unreadable(path, f"it has {image.width} x {image.height} px, above the limit of {MAX_PIXELS:,}")
    return image


def _is_costly(path: Path, image: Image.Image) -> bool:
    """Return whether an opened image could take much memory or time, by its size, format and number of scans."""
    if image.width * image.height > MAX_PIXELS_HERE or image.format in COSTLY_FORMATS:
        return True
    return image.format in ("JPEG", "MPO") and path.read_bytes().count(JPEG_SCAN) > MAX_SCANS


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise InputError for what Pillow raises on an image file."""
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _unreadable(path, f"it has more than {MAX_PIXELS:,} px") from error
    except UnidentifiedImageError as error:
        if "HEIF" not in pillow_formats() and _is_heif(path):
            raise InputError(
                f"The image {path.name!r} is a HEIC image, which cannot be read without the package pillow-heif.",
                "Run `pip install pillow-heif` and restart, or save the image as JPEG or PNG.",
                code="heif",
            ) from error
        raise _unreadable(path, f"it is not a {', '.join(pillow_formats())} image") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error on broken data
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _unreadable(path, reason or type(error).__name__) from error


def image_info(path: Path, *, min_side: int | None = None) -> tuple[ImageInfo, DecodedImage | None]:
    """Return a file's size, hash and issues, and the decoded image (see `decode`), None if unreadable. Never raises."""
    sha256 = ""
    try:
        sha256 = file_sha256(path)
        decoded = decode(path, min_side=min_side)
    except (InputError, OSError) as error:
        message = error.message if isinstance(error, InputError) else f"It cannot be read: {error.strerror}."
        issue = Issue(code="unreadable", message=message)
        return ImageInfo(path=path, width=0, height=0, sha256=sha256, issues=[issue]), None
    width, height = decoded.size
    info = ImageInfo(path=path, width=width, height=height, sha256=sha256, issues=_issues(path, decoded))
    return info, decoded


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def thumbnail(path: Path, folder: Path, size: int = 256, *, sha256: str | None = None) -> Path:
    """Return the path of an image's WebP thumbnail of at most `size` x `size` px in `folder`; made if missing.

    It is named by the image's hash and the size. `sha256` is the hash if the caller knows it, so that the file need not
    be read. Raises InputError if the image cannot be decoded.
    """
    target = folder / f"{sha256 or file_sha256(path)}-{size}.webp"
    if not target.exists() or not target.stat().st_size:  # an empty file is left by a power loss
        image = decode(path, min_side=size).image
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        write_atomic(target, lambda temporary: image.save(temporary, "WEBP", quality=82, method=4), derived=True)
    return target


def _decode(image: Image.Image, min_side: int | None, with_alpha: bool) -> DecodedImage:
    full = image.size
    high_bit_depth = image.mode.startswith(("I", "F")) or any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    cmyk = image.mode == "CMYK"
    name = "JPEG" if image.format == "MPO" else str(image.format)
    # The further frames of a camera's MPO are previews, not an animation.
    animated = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    quantization = tuple(getattr(image, "quantization", {}).get(0, ()))
    if min_side is not None:
        image.draft("RGB", _draft_size(full, min_side))
    image.load()
    transpose = EXIF_TRANSPOSES.get(_orientation(image))
    transparent = is_transparent(image)
    alpha = None
    if transparent and with_alpha and not image.mode.startswith(("I", "F")):
        rgba = image.convert("RGBA")
        rgb, alpha = rgba.convert("RGB"), rgba.getchannel("A")
    else:
        rgb = to_rgb(image, transparent)
    if transpose is not None:
        rgb = rgb.transpose(transpose)
        alpha = alpha.transpose(transpose) if alpha is not None else None
    # Pillow rotates a TIFF while loading it; every other format is rotated above.
    swapped = (rgb.width > rgb.height) != (full[0] > full[1]) and full[0] != full[1]
    size = full[::-1] if swapped else full
    return DecodedImage(rgb, size, name, animated, transparent, high_bit_depth, cmyk, alpha, quantization)


def _draft_size(full: tuple[int, int], min_side: int) -> tuple[int, int]:
    scale = min(1.0, min_side / min(full))
    return max(1, round(full[0] * scale)), max(1, round(full[1] * scale))


def _is_heif(path: Path) -> bool:
    """Return whether a file starts like a HEIC image: an `ftyp` box (ISO 14496-12) with a brand of ISO 23008-12."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF raises any kind of exception, and the image is usable without it
        return 1


def _issues(path: Path, decoded: DecodedImage) -> list[Issue]:
    width, height = decoded.size
    found = []
    if path.suffix.lower() not in SUFFIXES_BY_FORMAT[decoded.format]:
        found.append(
            Issue(
                code="wrong_extension",
                message=f"It is a {decoded.format} image, but its suffix is {path.suffix or 'missing'}. Rename it.",
            )
        )
    if min(width, height) < MIN_SIDE:
        found.append(
            Issue(
                code="too_small",
                message=f"{width} x {height} px: the shorter side is below {MIN_SIDE} px. "
                "Find a larger original; training on enlarged images teaches blur.",
            )
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        found.append(
            Issue(
                code="extreme_aspect",
                message=f"{width} x {height} px: the aspect ratio is above {MAX_ASPECT:g}:1. Crop it to what matters.",
            )
        )
    if decoded.animated:
        found.append(Issue(code="animated", message="It has several frames; only the first is used."))
    if decoded.transparent:
        found.append(Issue(code="alpha", message="It is partly transparent; training uses a white background."))
    if decoded.high_bit_depth:
        found.append(Issue(code="deep_color", message="It has more than 8 bits per channel; training uses 8."))
    if decoded.cmyk:
        found.append(Issue(code="cmyk", message="It is made for print (CMYK); in RGB its colours may shift."))
    return found


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(
        f"The image {path.name!r} cannot be read: {reason}.",
        "Open and save it again, or remove it.",
        code="unreadable",
    )
