"""Settings of the network: its type, ranks and layers, and the format of its file."""

from __future__ import annotations

from pydantic import field_validator

from lora_studio.settings.block_dims import MAX_DIM, parse_block_dims
from lora_studio.settings.choices import NetworkType, SaveFormat, SavePrecision, TrainLayers
from lora_studio.settings.declare import Group, Settings, setting

FULL_MATRIX_DIM = 10_000  # from here on LoKr's large matrix is whole in every layer, as in LyCORIS' recipes
MAX_LOKR_DIM = 1_000_000


class NetworkSettings(Settings):
    """What is added to the base model, and how it is saved."""

    network_dim: int = setting(
        label="Network rank (dim)", group=Group.NETWORK, advice="network_dim", simple=True, ge=1, le=MAX_LOKR_DIM
    )
    network_alpha: float = setting(
        label="Network alpha", group=Group.NETWORK, advice="network_alpha", simple=True, gt=0, le=1024
    )
    network_type: NetworkType = setting(
        NetworkType.LORA,
        label="Network type",
        group=Group.NETWORK,
        why="LoRA works in every program. LoCon also trains convolutions (styles), DoRA learns magnitude and direction "
        "separately (for A1111, Forge and ComfyUI; diffusers reads it in its own file format only), LoHa and LoKr "
        "(LyCORIS) reach a higher rank with fewer weights.",
    )
    train_layers: TrainLayers = setting(
        TrainLayers.ATTENTION_FF,
        label="Trained layers",
        group=Group.NETWORK,
        why="attention_ff is what kohya trains: attention, feed-forward and projections. linear adds the linear layers "
        "of the resnets, all adds the convolutions too. LoCon always trains all.",
    )
    conv_dim: int | None = setting(
        None,
        label="Conv rank (dim)",
        group=Group.NETWORK,
        why="Rank of the 3x3 convolutions, for LoCon or when all layers are trained. Empty: the network rank.",
        ge=1,
        le=MAX_LOKR_DIM,
    )
    conv_alpha: float | None = setting(
        None,
        label="Conv alpha",
        group=Group.NETWORK,
        why="Alpha of the 3x3 convolutions, for LoCon or when all layers are trained. Empty: the same ratio to the "
        "conv rank as network alpha has to the network rank.",
        gt=0,
        le=1024,
    )
    rank_stabilized: bool = setting(
        False,
        label="Rank-stabilised (rsLoRA)",
        group=Group.NETWORK,
        why="Scales by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023), so that high ranks learn as "
        "fast as low ones. The saved alpha is adjusted so that every program gives the same image.",
    )
    network_dropout: float = setting(
        0.0,
        label="Network dropout",
        group=Group.NETWORK,
        why="Fraction of a layer's inputs (LoHa, LoKr: of its output rows) that each step drops, against overfitting; "
        "0.1 is mild, 0 is off.",
        ge=0,
        le=0.9,
    )
    rank_dropout: float = setting(
        0.0,
        label="Rank dropout",
        group=Group.NETWORK,
        why="Fraction of the ranks (LoHa, LoKr: of the output rows) that each sample of a step drops, so that the LoRA "
        "does not depend on few of them; 0.1 is mild, 0 is off.",
        ge=0,
        le=0.9,
    )
    module_dropout: float = setting(
        0.0,
        label="Module dropout",
        group=Group.NETWORK,
        why="Fraction of the layers that each batch trains without, so that the LoRA does not depend on single layers; "
        "0.1 is mild, 0 is off. A DoRA's magnitudes stay.",
        ge=0,
        le=0.9,
    )
    block_dims: str = setting(
        "",
        label="Block ranks (dims)",
        group=Group.NETWORK,
        why="Other ranks for single blocks of the UNet, like in4-5=8, mid=16, out0-2=32, or kohya's 23 numbers; 0 "
        "leaves a block untrained. Alpha stays the same. Empty: the network rank in every block.",
        max_length=500,
    )
    dim_from_weights: bool = setting(
        False,
        label="Ranks of the LoRA to start from",
        group=Group.NETWORK,
        why="Takes the layers with their ranks and alphas from the LoRA file that the training starts from, instead of "
        "the settings here; the plan still counts with these. Off: the file must match them.",
    )
    lokr_factor: int = setting(
        -1,
        label="LoKr factor",
        group=Group.NETWORK,
        why="Size of LoKr's small matrix. -1 makes both matrices as square as possible, which gives the smallest file; "
        "4 to 16 make the large one larger, with more capacity; a network rank of 10000 keeps it whole (LyCORIS' full "
        "matrix).",
        ge=-1,
        le=512,
        only_with="network_type=LoKr",
    )
    use_tucker: bool = setting(
        False,
        label="Tucker decomposition",
        group=Group.NETWORK,
        why="Factorises the kernels of LoHa's and LoKr's 3x3 convolutions apart, for a smaller file (LyCORIS' "
        "use_tucker or use_cp). Off: a rank then means the same in linear layers and convolutions.",
        only_with="network_type=LoHa|LoKr",
    )
    save_format: SaveFormat = setting(
        SaveFormat.KOHYA,
        label="File format",
        group=Group.NETWORK,
        why="kohya's format works in A1111, Forge, ComfyUI and diffusers. diffusers' own is for scripts that use that "
        "library; it has no LoHa and LoKr. A DoRA's magnitudes are per input in kohya's format, where A1111, Forge and "
        "ComfyUI read no others exactly, and per output in diffusers', which has no others.",
    )

    save_precision: SavePrecision = setting(
        SavePrecision.AUTO,
        label="File precision",
        group=Group.NETWORK,
        why="Data type of the saved weights. auto is fp16, which every program reads and which is finer than bf16 in a "
        "file of the same size, or fp32 after a run in fp32. fp32 doubles the file and shows no difference in images.",
    )

    @field_validator("block_dims")
    @classmethod
    def _valid_block_dims(cls, value: str) -> str:
        parse_block_dims(value)
        return value

    @property
    def uses_dropout(self) -> bool:
        """True if a training step drops inputs, ranks or layers of the network at random."""
        return bool(self.network_dropout or self.rank_dropout or self.module_dropout)

    @property
    def is_full_matrix(self) -> bool:
        """True if LoKr trains its large matrix whole in every layer, so that alpha has no effect."""
        return self.network_type is NetworkType.LOKR and self.network_dim >= FULL_MATRIX_DIM

    @property
    def trains_convolutions(self) -> bool:
        """True if 3x3 convolutions are among the trained layers."""
        return self.network_type is NetworkType.LOCON or self.train_layers is TrainLayers.ALL


def network_problems(settings: NetworkSettings) -> list[str]:
    """Return a message for each pair of network settings that contradict each other."""
    kind, problems = settings.network_type, []
    if kind is NetworkType.LOCON and settings.train_layers in (TrainLayers.ATTENTION, TrainLayers.LINEAR):
        problems.append(
            f"network_type is LoCon, which trains convolutions, but train_layers is {settings.train_layers.value}. Set "
            "train_layers to all, or network_type to LoRA."
        )
    for name in ("conv_dim", "conv_alpha"):
        if getattr(settings, name) is not None and not settings.trains_convolutions:
            problems.append(
                f"{name} is {getattr(settings, name):g}, but no convolution is trained. Set network_type to LoCon or "
                f"train_layers to all, or leave {name} empty."
            )
    for name in ("network_dim", "conv_dim"):
        if (getattr(settings, name) or 0) > MAX_DIM and kind is not NetworkType.LOKR:
            problems.append(
                f"{name} is {getattr(settings, name)}, which LoKr alone can have, but network_type is {kind.value}. "
                f"Use at most {MAX_DIM}, or set network_type to LoKr."
            )
    if kind in (NetworkType.LOHA, NetworkType.LOKR) and settings.network_dropout and settings.rank_dropout:
        problems.append(
            f"network_dropout is {settings.network_dropout:g} and rank_dropout {settings.rank_dropout:g}, which are "
            f"the same for {kind.value}. Set one of them to 0."
        )
    if settings.dim_from_weights:
        others = {"block_dims": "", "conv_dim": None, "conv_alpha": None, "rank_stabilized": False}
        problems += [
            f"dim_from_weights is on, which takes ranks and alphas from a LoRA file, but {name} is set too. Remove one "
            "of them."
            for name, unset in others.items()
            if getattr(settings, name) != unset
        ]
    if settings.use_tucker and kind not in (NetworkType.LOHA, NetworkType.LOKR):
        problems.append(
            f"use_tucker is on, which LoHa and LoKr alone have, but network_type is {kind.value}. Set use_tucker to "
            "false, or network_type to LoHa or LoKr."
        )
    if settings.lokr_factor != -1 and kind is not NetworkType.LOKR:
        problems.append(
            f"lokr_factor is {settings.lokr_factor}, but network_type is {kind.value}. Set it to -1, or network_type "
            "to LoKr."
        )
    if settings.lokr_factor == 0:
        problems.append("lokr_factor is 0. Use -1, or a factor like 8.")
    if settings.save_format is SaveFormat.DIFFUSERS and kind in (NetworkType.LOHA, NetworkType.LOKR):
        problems.append(f"save_format is diffusers, which does not support {kind.value}. Set save_format to kohya.")
    return problems
