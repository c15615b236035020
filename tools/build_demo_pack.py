"""Build the embedded pack: `python tools/build_demo_pack.py all --modules node_modules --work build/pack`.

Stages can be run one by one and resume where they stopped. `vae` is trained on icons on white, `vae-renderings`
continues it on renderings in many styles. After it, the stages `decoder` and `unet` can run at the same time; `unet`
first encodes renderings. `tagger` needs only `render`, `captioner` needs the tagger. `export` uses the latest
checkpoints. `adopt` takes the parts that have no checkpoint in the work folder from a pack: autoencoder, UNet and text
encoders, tagger; `vae-renderings`, `decoder`, `unet` and `tagger` then continue their training. `styles` trains LoRAs
in styles that no model was trained on, and judges them; `recipes` does so on three of the styles for several recipes.
`collection` trains the good and bad LoRAs of tests/data/loras.
"""

import argparse
import sys
from pathlib import Path

from demo_pack import captioner, evaluate, export, pictures, progress, tagger, testset, unet, vae
from demo_pack.progress import Length

TRAINING = {  # stage: (function, default length)
    "vae": (vae.train, "20m"),
    vae.RENDERINGS_STAGE: (vae.train_on_renderings, "50m"),
    "tagger": (tagger.train, "25m"),
    "captioner": (captioner.train, "40m"),
    "unet": (unet.train, "70m"),
    "decoder": (vae.train_decoder, "40m"),
}

ADOPTED = (  # function, folder in the pack, file or folder in the work folder
    (vae.adopt, "base/vae", "vae"),
    (unet.adopt, "base/unet", "unet.ckpt"),
    (tagger.adopt, "tagger", "tagger.ckpt"),
)

AFTER = ("export", "evaluate", "recipes", "styles", "collection", "testset")

ROOT = Path(__file__).resolve().parent.parent
PACK = ROOT / "lora_studio" / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "stage",
        choices=[
            "render",
            "adopt",
            *TRAINING,
            "export",
            "evaluate",
            "recipes",
            "styles",
            "collection",
            "testset",
            "all",
        ],
    )
    parser.add_argument("--modules", type=Path, default=Path("node_modules"), help="where npm installed the icon sets")
    parser.add_argument("--work", type=Path, default=Path("build/pack"), help="renders and checkpoints; resumable")
    for stage, (_, usual) in TRAINING.items():
        parser.add_argument(f"--{stage}", default=usual, metavar="LENGTH", help=f"steps, or minutes like {usual}")
    parser.add_argument("--pack", type=Path, default=PACK, help="the folder that export writes and evaluate reads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    sys.path.append(str(ROOT))  # evaluate and styles train LoRAs with the studio itself
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage in ("render", "all"):
        pictures.render(args.modules, args.work, progress.log)
    if args.stage == "adopt":
        for adopt, source, target in ADOPTED:
            if (args.pack / source).exists() and not (args.work / target).exists():
                adopt(args.work, args.pack)
    for stage, (train, _) in TRAINING.items():
        if args.stage in (stage, "all") and not progress.finished(stage, args.work):
            length = Length.parse(getattr(args, stage.replace("-", "_")))
            train(args.work, length=length, seed=args.seed, device=args.device)
    if args.stage in ("export", "all"):
        export.export(args.work, args.pack)
    if args.stage in ("evaluate", "all"):
        evaluate.evaluate(args.work, args.pack)
    if args.stage in ("styles", "all"):
        from demo_pack.styles import report_styles  # imports the studio, like recipe_search

        report_styles(args.work, args.pack)
    if args.stage == "recipes":
        from demo_pack.recipe_search import search

        search(args.work, args.pack)
    if args.stage == "collection":
        from demo_pack.collection import write_collection

        write_collection(args.work, args.pack, ROOT / "tests" / "data" / "loras")
    if args.stage in ("testset", "all"):
        testset.write(args.work, ROOT / "tests" / "data" / "pack")


if __name__ == "__main__":
    main()
