"""Build docs/kohya.md from the arguments in lora_studio/interop/: `python tools/build_kohya_page.py`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "kohya.md"

sys.path.insert(0, str(ROOT))

from lora_studio.interop.arguments import ARGUMENTS, NOT_AVAILABLE, NOT_NEEDED, OURS  # noqa: E402
from lora_studio.interop.network import ALGORITHMS, MODULES, PRESETS  # noqa: E402
from lora_studio.interop.optimizer import CLASSES, OPTIMIZERS  # noqa: E402
from lora_studio.settings.declare import setting_label  # noqa: E402
from lora_studio.settings.recipe import Recipe  # noqa: E402

INTRODUCTION = """# Moving here from kohya_ss

Settings keep kohya's names wherever they mean the same, image sets keep kohya's folders (`10_name`: repeats and a
name), and captions stay `.txt` files beside the images. A dataset needs no conversion: import its folder in Dataset.

## Import settings

In Train, open "Settings of kohya's tools" and upload one of these files; on the command line use `--from`:

```
python -m lora_studio train --from kohya.json --dataset my-images --base "SDXL 1.0" --out runs/kohya
```

- the `.json` that kohya_ss' form saves
- the `.toml` of sd-scripts (its `--config_file`; a `dataset_config` with subsets, too)
- a LoRA as `.safetensors`, if its metadata says how it was trained

What was not carried over is listed with the reason. Where a file does not name an argument, sd-scripts' default is
used, not the studio's, so that the run is the one that kohya's tools would do.

## Export settings

"Export for sd-scripts" in the same place writes a TOML; on the command line:

```
python -m lora_studio plan my-images --export sd-scripts.toml
```

This page is generated from `lora_studio/interop/` by `tools/build_kohya_page.py`.
"""
SEVERAL = """## Rates and length

- `learning_rate`, `unet_lr`, `text_encoder_lr`: the studio has `unet_lr`, `text_encoder_lr` (the first encoder) and
  `text_encoder_lr2`; a part that sd-scripts does not train has a rate of 0.
- `max_train_epochs`, `max_train_steps`, `lr_warmup_steps`: epochs, or a limit of steps; the warm-up is in steps, or
  below 1 a share of the run. kohya_ss' `lr_warmup` in percent is read as such a share.
- Samples: prompts are read with kohya's options (`--n --w --h --d --s --l --ss`).
"""


def main() -> None:
    PAGE.write_text(kohya_page(), "utf-8")


def kohya_page() -> str:
    """Return docs/kohya.md."""
    parts = [INTRODUCTION, same_meaning(), networks(), optimizers(), SEVERAL, left_out()]
    return "\n".join(parts).rstrip() + "\n"


def same_meaning() -> str:
    """Return the arguments that are one setting each, by the name of the argument."""
    rows = []
    for item in sorted(ARGUMENTS, key=lambda argument: argument.name):
        label = setting_label(Recipe, item.setting)
        missing = "the setting's own default" if item.default is OURS else f"`{shown(item.default)}`"
        rows.append(f"| `{item.name}` | `{item.setting}` | {label} | {missing} |")
    head = ["## One argument, one setting", "", "| argument | setting | in the form | if the file lacks it |"]
    return "\n".join([*head, "|---|---|---|---|", *rows, ""])


def shown(value: object) -> str:
    """Return a default as a job file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(getattr(value, "value", value)) or '""'


def networks() -> str:
    """Return the modules of networks, and LyCORIS' names."""
    rows = [f"| `{module}` | {kind.value} |" for module, kind in MODULES.items()]
    names: dict[str, list[str]] = {}
    for kind, algorithm in ALGORITHMS.items():
        names.setdefault(algorithm, []).append(kind.value)
    rows += [f"| `lycoris.kohya`, `algo={name}` | {', '.join(kinds)} |" for name, kinds in names.items()]
    layers = [f"| `preset={preset}` | `{choice.value}` |" for choice, preset in PRESETS.items()]
    return "\n".join(
        [
            "## Networks",
            "",
            "| network_module | network_type |",
            "|---|---|",
            *rows,
            "",
            "LyCORIS' `locon` is a DoRA with `dora_wd`. `networks.lora` with `conv_dim` is a LoCon.",
            "",
            "| LyCORIS' preset | train_layers |",
            "|---|---|",
            *layers,
            "",
        ]
    )


def optimizers() -> str:
    """Return the optimizers by sd-scripts' names."""
    rows = [f"| `{known.name}` | {kind.value} |" for kind, known in OPTIMIZERS.items()]
    rows += [f"| `{name}` | the class `{path}` as `optimizer_type` |" for name, (path, _) in CLASSES.items()]
    note = (
        "The studio sets some arguments of an optimizer otherwise than its library. An import keeps the library's "
        "where the file sets nothing, an export writes the studio's."
    )
    return "\n".join(["## Optimizers", "", "| optimizer_type | optimizer |", "|---|---|", *rows, "", note, ""])


def left_out() -> str:
    """Return the arguments that have no setting, with the reasons."""
    lines = [
        "## What the studio does not have",
        "",
        "These change what the LoRA learns, and are listed after an import.",
    ]
    lines += ["", "| argument | instead |", "|---|---|"]
    lines += [f"| `{name}` | {why} |" for name, why in sorted(NOT_AVAILABLE.items())]
    lines += ["", "## What needs no setting", "", "These change how the program runs, not what the LoRA learns.", ""]
    by_reason: dict[str, list[str]] = {}
    for name, why in NOT_NEEDED.items():
        by_reason.setdefault(why, []).append(f"`{name}`")
    lines += [f"- {', '.join(sorted(names))}: {why}" for why, names in by_reason.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
