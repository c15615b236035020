"""The installed PyTorch build, and the build that an NVIDIA GPU and its driver need. PyTorch is never imported."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lora_studio.versions import installed_version

WHEELS = "https://download.pytorch.org/whl"
# Major version of CUDA -> the first major version of NVIDIA's driver that runs programs of all its minor versions
# (CUDA compatibility guide, "minor version compatibility").
MIN_DRIVER = {11: 450, 12: 525, 13: 580}
FIRST_MAXWELL, FIRST_VOLTA, FIRST_TURING, FIRST_BLACKWELL = 5.0, 7.0, 7.5, 10.0  # compute capabilities


@dataclass(frozen=True)
class CudaWheels:
    """PyTorch's wheels for one CUDA version, by the name of their index.

    `releases` are the first and the last PyTorch release that has them (None: the newest), `capabilities` the lowest
    compute capability that they have code for and the first one above it (PyTorch's RELEASE.md, "CUDA support matrix").
    """

    index: str
    releases: tuple[tuple[int, int], tuple[int, int] | None]
    capabilities: tuple[float, float]

    @property
    def min_driver(self) -> int:
        """The first major version of the driver that these wheels work with."""
        return MIN_DRIVER[int(self.index.removeprefix("cu")[:2])]

    def has(self, release: tuple[int, int], capability: float | None) -> bool:
        """Return whether a PyTorch release has these wheels, with code for the GPU; None is a GPU that is not known."""
        first, last = self.releases
        low, high = self.capabilities
        known = capability is None or low <= capability < high
        return known and first <= release and (last is None or release <= last)


# From the most preferred one. The oldest is kept for GPUs before Turing and for old drivers.
CUDA_WHEELS = (
    CudaWheels("cu130", ((2, 9), None), (FIRST_TURING, 13.0)),
    CudaWheels("cu128", ((2, 8), (2, 11)), (FIRST_TURING, 13.0)),
    CudaWheels("cu126", ((2, 8), (2, 14)), (FIRST_MAXWELL, FIRST_BLACKWELL)),
)


@dataclass(frozen=True)
class TorchBuild:
    """A PyTorch build: its version, like 2.13.0+cu130, and the version of CUDA or ROCm (HIP) that it is made for."""

    version: str
    cuda: str | None = None
    hip: str | None = None

    @property
    def min_driver(self) -> int:
        """The first major version of NVIDIA's driver that this build works with; 0 if it is built without CUDA."""
        return MIN_DRIVER.get(int((self.cuda or "0").partition(".")[0]), 0)

    @property
    def release(self) -> str:
        """The version without the part that names the build."""
        return self.version.partition("+")[0]

    def mismatch(self, capability: float | None, driver: int | None) -> str:
        """Return why an NVIDIA GPU of this compute capability and driver cannot run this build; empty if it can.

        A value that is None is not known, and taken to fit.
        """
        if self.cuda is None:
            return f"the installed PyTorch {self.version} is built without CUDA"
        built_for = f"the installed PyTorch {self.version} is built for CUDA {self.cuda}"
        needed = self.min_driver
        if driver is not None and driver < needed:
            return f"{built_for}, which needs driver {needed} or newer, and the installed driver is {driver}"
        cuda = float(self.cuda)
        first = FIRST_TURING if cuda >= 13 else FIRST_VOLTA if cuda >= 12.8 else FIRST_MAXWELL
        if capability is not None and (capability < first or (cuda < 12.8 and capability >= FIRST_BLACKWELL)):
            return f"{built_for}, which has no code for GPUs of compute capability {capability:g}"
        return ""

    def remedy(self, capability: float | None, driver: int | None) -> str:
        """Return what makes the GPU usable: a command that installs another build, a newer driver, or both."""
        fitting = [wheels for wheels in CUDA_WHEELS if wheels.has(self._minor, capability)]
        if not fitting:
            return f"PyTorch {self.release} has no build for it (compute capability {capability:g}). Use another GPU."
        usable = [wheels for wheels in fitting if driver is None or driver >= wheels.min_driver]
        if usable:
            newer_driver_helps = self.cuda is not None and not self.mismatch(capability, self.min_driver)
            update = f", or update NVIDIA's driver to version {self.min_driver} or newer" if newer_driver_helps else ""
            return f"Run {self.install_command(usable[0])}{update}. Then restart the studio."
        best = fitting[0]
        update = f"Update NVIDIA's driver to version {best.min_driver} or newer"
        if not self.mismatch(capability, best.min_driver):
            return f"{update}, then restart the computer."
        return f"{update}, and run {self.install_command(best)}. Then restart the computer."

    def install_command(self, wheels: CudaWheels) -> str:
        """Return the command that installs this release for another CUDA version, with the torchvision that fits."""
        packages = [f"torch=={self.release}+{wheels.index}"]
        if vision := installed_version("torchvision"):
            packages.append(f"torchvision=={vision.partition('+')[0]}+{wheels.index}")
        return f"pip install {' '.join(packages)} --index-url {WHEELS}/{wheels.index}"

    @property
    def _minor(self) -> tuple[int, int]:
        major, minor = self.release.split(".")[:2]
        return int(major), int(minor)


def installed_torch() -> TorchBuild | None:
    """Return the installed PyTorch build as its version.py describes it; None if there is no PyTorch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        tree = ast.parse(Path(spec.origin).with_name("version.py").read_text("utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    values: dict[str, object] = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            values[target.id] = value.value
    version = values.get("__version__")
    cuda, hip = (str(found) if (found := values.get(name)) else None for name in ("cuda", "hip"))
    return TorchBuild(version, cuda, hip) if isinstance(version, str) else None
