"""What a step launches and keeps at SDXL's real size: the studio's adapted UNet, and the same with peft's layers.

Counted on the meta device, which computes shapes alone: forward and backward pass at 1024 px, batch 1, rank 32, the
base and the LoRA in bf16, attention by the flash kernel. At batch 1 a step is bound by the number of its operations.
"""

from __future__ import annotations

from tests.support.step_operations import peft, studio


def main() -> None:
    ours, theirs = studio(), peft()
    print(
        f"operations: {ours.operations} over peft's {theirs.operations}: {ours.operations / theirs.operations:.2f}; "
        f"kept for the backward pass: {ours.saved / 2**30:.2f} GiB over {theirs.saved / 2**30:.2f}: "
        f"{ours.saved / theirs.saved:.2f}"
    )


if __name__ == "__main__":
    main()
