"""Read LoRA files layer by layer, and write new ones; an existing file is never overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_studio.errors import InputError
from lora_studio.lora.alphas import PEFT_METADATA, Alphas
from lora_studio.lora.deltas import rank_of
from lora_studio.lora.header import MERGE_REMEDY, read_lora_header
from lora_studio.lora.names import VECTOR_PARTS
from lora_studio.lora.save import save_lora
from lora_studio.lora.tools.new_file import check_new_file

Progress = Callable[[int, int], None]
HASHES = ("sshs_model_hash", "sshs_legacy_hash")  # computed again for every file that is written
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def no_progress(done: int, total: int) -> None:
    """Ignore the progress of a tool: (layers done, layers in total)."""


class LoraReader:
    """A LoRA file opened for reading one layer at a time, so that the memory for it stays small."""

    def __init__(self, path: Path) -> None:
        """Read and check the header; raise InputError for a file that is not a LoRA for SDXL."""
        self.lora = read_lora_header(path)
        self._alphas = Alphas(self.lora)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._file = self._stack.enter_context(safe_open(self.lora.path, framework="pt"))
        except (SafetensorError, OSError) as error:
            name = self.lora.path.name
            raise InputError(
                f"LoRA {name} is damaged: {error}.", "Download or copy it again.", code="lora_file"
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def layers(self) -> list[str]:
        """The layers' names, in the order of the file."""
        return list(self.lora.modules)

    def parts(self, layer: str) -> dict[str, Tensor]:
        """Return the tensors of a layer's weight delta, by kohya's names; empty if it changes a bias or norm only.

        Raises InputError for NaN and infinity, and for IA3, whose delta is a multiple of the base's weight.
        """
        vectors = self.lora.vector_parts(layer).values()
        names = {part: full for part, full in self.lora.modules[layer].items() if full not in vectors}
        if "on_input" in names:
            raise InputError(
                f"LoRA {self.lora.path.name} is an IA3 network, whose change depends on the base's weights.",
                MERGE_REMEDY,
                code="lora_network",
            )
        tensors = {part: self._tensor(full) for part, full in names.items()}
        return tensors if tensors.keys() - {"alpha", "dora_scale"} else {}

    def vectors(self, layer: str) -> dict[str, Tensor]:
        """Return what a layer adds to a bias or a norm, by the part's name in LyCORIS' files."""
        return {part: self._tensor(full) for part, full in self.lora.vector_parts(layer).items()}

    def alpha(self, layer: str, parts: Mapping[str, Tensor]) -> float:
        """Return the alpha of a layer with these parts; its dim if the file has none."""
        return float(parts["alpha"]) if "alpha" in parts else self._alphas.of(layer)(rank_of(parts))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the file's largest tensor."""
        largest = max(self.lora.tensors, key=lambda name: torch.Size(self.lora.tensors[name][1]).numel())
        dtype: torch.dtype = self._file.get_tensor(largest).dtype
        return dtype

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        if not torch.isfinite(tensor.float()).all():
            raise InputError(
                f"LoRA {self.lora.path.name} contains NaN or infinity (in {name}).",
                "Its training diverged; use an earlier checkpoint.",
                code="lora_not_finite",
            )
        return tensor


def parse_dtype(name: str | None, sources: Iterable[LoraReader]) -> torch.dtype:
    """Return the dtype to write: the named one, else the widest of the sources; raise InputError for another name."""
    if name is None:
        widest = torch.float16
        for number, source in enumerate(sources):
            widest = source.dtype if number == 0 else torch.promote_types(widest, source.dtype)
        return widest if widest in DTYPES.values() else torch.float16
    if name not in DTYPES:
        raise InputError(f"dtype is {name!r}.", f"Give one of {', '.join(DTYPES)}.", code="dtype")
    return DTYPES[name]


def write_lora(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a new LoRA file atomically; raise InputError if it exists, DiskFullError if the disk is full."""
    check_new_file(path)
    save_lora(path, tensors, {name: value for name, value in metadata.items() if name not in HASHES})


def network_metadata(metadata: Mapping[str, str], ranks: Iterable[int], comment: str) -> dict[str, str]:
    """Return a file's metadata for a LoRA in kohya's format of these ranks, whose alphas equal them.

    `comment` says what was done; it is appended to `ss_training_comment`.
    """
    distinct = set(ranks)
    rank = str(distinct.pop()) if len(distinct) == 1 else "Dynamic"
    before = metadata.get("ss_training_comment", "")
    kept = {name: value for name, value in metadata.items() if name not in (PEFT_METADATA, "ss_network_args")}
    return kept | {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_training_comment": f"{before}; {comment}" if before not in ("", "None") else comment,
    }


def layer_vectors(kohya: str, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a layer adds to biases and norms, by tensor names of LyCORIS."""
    assert vectors.keys() <= VECTOR_PARTS
    return {f"{kohya}.{part}": tensor for part, tensor in vectors.items()}
