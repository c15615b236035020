"""Writes the pack: half-precision weights in the folders that real models come in."""

import shutil
from pathlib import Path

from demo_pack import captioner, pictures, progress, tagger, tokenizer, unet

LIMIT_MIB = 30.0
PARTS = ("base", "tagger", "captioner")


def _keep_float32(config: Path) -> None:
    """Let transformers load half-precision weights as float32, which CPUs compute fast."""
    config.write_text(config.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")


def _export_base(work: Path, folder: Path) -> None:
    pipeline = unet.snapshot(work)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        getattr(pipeline, part).half()
    pipeline.save_pretrained(folder)
    for part in ("text_encoder", "text_encoder_2"):
        _keep_float32(folder / part / "config.json")
    for part, pad_token in (("tokenizer", tokenizer.END), ("tokenizer_2", "!")):
        shutil.rmtree(folder / part)
        tokenizer.write(folder / part, merges=unet.MERGES, pad_token=pad_token)


def _export_tagger(work: Path, folder: Path) -> None:
    weights = progress.averaged("tagger", work)
    if weights is None:
        raise SystemExit("there is no checkpoint of the tagger yet: run the tagger stage first")
    tags = tagger.vocabulary(tagger.learned(pictures.load(work, pictures.SEEING_SETS)[0]))
    model = tagger.build(len(tags))
    model.load_state_dict(weights["tagger"])
    tagger.write(model, tags, folder)


def _export_captioner(work: Path, folder: Path) -> None:
    weights = progress.averaged("captioner", work)
    if weights is None:
        raise SystemExit("there is no checkpoint of the captioner yet: run the captioner stage first")
    tokens = captioner.load_tokenizer(work)
    model = captioner.build(tokens)
    model.load_state_dict(weights["model"])
    captioner.write(model, tokens, folder)


def size_mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def export(work: Path, pack: Path) -> None:
    """Write base, tagger and captioner below `pack`, from the latest checkpoints in `work`.

    Each is written aside and put in place whole. Raises SystemExit if a checkpoint is missing or the pack is too big.
    """
    aside = work / "export"
    shutil.rmtree(aside, ignore_errors=True)
    for name, write in zip(PARTS, (_export_base, _export_tagger, _export_captioner), strict=True):
        write(work, aside / name)
    total = size_mib(aside)
    if total > LIMIT_MIB:
        raise SystemExit(f"the pack takes {total:.1f} MiB, more than {LIMIT_MIB:g}")
    for name in PARTS:
        shutil.rmtree(pack / name, ignore_errors=True)
        shutil.copytree(aside / name, pack / name)
        for file in (pack / name).rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
    progress.say(f"export: {total:.1f} MiB in {pack}")
