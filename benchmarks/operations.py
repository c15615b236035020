"""Operations and saved memory of a step at SDXL's real size: the studio's LoRA layers and peft's.

Counted on the meta device, which computes shapes only: forward and backward pass at 1024 px, batch 1, rank 32, base and
LoRA in bf16, flash attention. At batch 1 the time of a step is bound by the number of operations.
"""

from __future__ import annotations

from tests.support.step_operations import count_peft, count_studio


def main() -> None:
    studio, peft = count_studio(), count_peft()
    print(
        f"operations: {studio.operations} over peft's {peft.operations}: {studio.operations / peft.operations:.2f}; "
        f"saved for backward: {studio.saved / 2**30:.2f} GiB over {peft.saved / 2**30:.2f}: "
        f"{studio.saved / peft.saved:.2f}"
    )


if __name__ == "__main__":
    main()
