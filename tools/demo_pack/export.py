"""Write the pack: half-precision weights in the folder layouts of real models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from demo_pack import captioner, pictures, progress, tagger, unet

LIMIT_MIB = 30.0


def _keep_float32(config: Path) -> None:
    """Let transformers load half-precision weights as float32, which CPUs compute fast."""
    config.write_text(config.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")


def _remove_origin(config: Path) -> None:
    """Remove the path from which diffusers loaded the model, a folder of this machine."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def add_text_model_prefix(file: Path) -> None:
    """Put `text_model.` before the names of a text encoder's tensors, as transformers 4 writes and needs them.

    transformers 5 reads them with and without it, but writes the first encoder's without.
    """
    prefix = "text_model."
    weights = {prefix + name.removeprefix(prefix): weight for name, weight in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


def _export_base(work: Path, folder: Path) -> None:
    pipeline = unet.snapshot(work)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        getattr(pipeline, part).half()
    pipeline.save_pretrained(folder)
    _remove_origin(folder / "vae" / "config.json")
    for part in ("text_encoder", "text_encoder_2"):
        _keep_float32(folder / part / "config.json")
    add_text_model_prefix(folder / "text_encoder" / "model.safetensors")
    for part in unet.TOKENIZERS:
        shutil.rmtree(folder / part)
        shutil.copytree(work / part, folder / part)


def _export_tagger(work: Path, folder: Path) -> None:
    weights = progress.ema_weights("tagger", work)
    assert weights is not None
    tags = tagger.vocabulary(tagger.usable_words(pictures.load(work, pictures.TAGGER_SETS)[0]))
    model = tagger.build(len(tags))
    model.load_state_dict(weights["tagger"])
    tagger.write(model, tags, folder)


def _export_captioner(work: Path, folder: Path) -> None:
    weights = progress.ema_weights("captioner", work)
    assert weights is not None
    tokens = captioner.load_tokenizer(work)
    model = captioner.build(tokens)
    model.load_state_dict(weights["model"])
    captioner.write(model, tokens, folder)


def size_mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


PARTS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {  # folder: (stage, function that writes it)
    "base": ("unet", _export_base),
    "tagger": ("tagger", _export_tagger),
    "captioner": ("captioner", _export_captioner),
}


def export(work: Path, pack: Path) -> None:
    """Write each part with a checkpoint in `work` to `pack`, from the latest one, finished or not; keep the others.

    Parts are first written to a temporary folder. Raises SystemExit if there is no checkpoint or the pack is too big.
    """
    temporary = work / "export"
    shutil.rmtree(temporary, ignore_errors=True)
    trained = [name for name, (stage, _) in PARTS.items() if progress.ema_weights(stage, work) is not None]
    if not trained:
        raise SystemExit("there are no checkpoints yet: run a training stage first")
    for name in trained:
        PARTS[name][1](work, temporary / name)
    total = sum(size_mib((temporary if name in trained else pack) / name) for name in PARTS)
    if total > LIMIT_MIB:
        raise SystemExit(f"the pack takes {total:.1f} MiB, more than {LIMIT_MIB:g}")
    for name in trained:
        shutil.rmtree(pack / name, ignore_errors=True)
        shutil.copytree(temporary / name, pack / name)
        for file in (pack / name).rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
    progress.log(f"export: {', '.join(trained)} to {pack}; {total:.1f} MiB in all")
