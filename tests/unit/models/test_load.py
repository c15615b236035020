"""Base models are found, read and loaded; what is not an SDXL base is an error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from lora_studio.errors import InputError
from lora_studio.models import load as base_models
from lora_studio.models import locate as base_files
from lora_studio.models.load import Base, load_base, load_vae
from lora_studio.models.locate import SDXL_CONFIG, Source, read_base_config, resolve_base
from lora_studio.workspace.project import Home
from tests.support.original_layout import save_single_file
from tests.support.tiny_sdxl import make_pipeline, save_tiny_sdxl
from tests.support.training_runs import same


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def single(base: Path) -> Path:
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    return save_single_file(pipe, base.parent / "tiny.safetensors")


@pytest.fixture
def tiny_config(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace SDXL's bundled configuration by the tiny model's."""
    for module in (base_files, base_models):
        monkeypatch.setattr(module, "SDXL_CONFIG", base)


def load(name: str | Path, home: Home, dtype: torch.dtype = torch.float32) -> Base:
    return load_base(resolve_base(str(name), home), dtype=dtype)


def test_a_single_file_loads_the_same_model_as_the_folder(
    base: Path, single: Path, home: Home, tiny_config: None
) -> None:
    folder, file = load(base, home), load(single, home)
    assert same(file.unet.state_dict(), folder.unet.state_dict())
    assert same(file.vae.state_dict(), folder.vae.state_dict())
    for first, second in zip(file.text_encoders, folder.text_encoders, strict=True):
        assert same(first.state_dict(), second.state_dict())
    assert file.noise_scheduler.betas.tolist() == folder.noise_scheduler.betas.tolist()
    assert not any(parameter.requires_grad for parameter in file.unet.parameters())
    assert file.hash != folder.hash


def test_the_vae_stays_fp32_in_half_precision(single: Path, base: Path, home: Home, tiny_config: None) -> None:
    for name in (single, base):
        half = load(name, home, torch.bfloat16)
        assert {half.unet.dtype, *(encoder.dtype for encoder in half.text_encoders)} == {torch.bfloat16}
        assert half.vae.dtype == torch.float32


@pytest.mark.parametrize(
    ("markers", "metadata", "expected"),
    [
        ((), {}, ("epsilon", False, False)),
        (("v_pred",), {}, ("v_prediction", True, False)),
        (("v_pred", "ztsnr"), {}, ("v_prediction", True, True)),
        ((), {"modelspec.prediction_type": "v"}, ("v_prediction", True, False)),
        ((), {"modelspec.prediction_type": "epsilon"}, ("epsilon", True, False)),
        ((), {"modelspec.predict_key": "v"}, ("v_prediction", True, False)),
        ((), {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, ("v_prediction", True, True)),
        ((), {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "False"}, ("epsilon", True, False)),
        (("v_pred",), {"modelspec.prediction_type": "epsilon"}, ("v_prediction", True, False)),
        ((), {"modelspec.prediction_type": "unknown"}, ("epsilon", False, False)),
    ],
)
def test_reads_prediction_type_and_zero_terminal_snr_of_a_single_file(
    tmp_path: Path, markers: tuple[str, ...], metadata: dict[str, str], expected: tuple[str, bool, bool]
) -> None:
    tensors = {base_files.SDXL_KEY: torch.zeros(1), **{marker: torch.tensor([]) for marker in markers}}
    save_file(tensors, tmp_path / "a.safetensors", metadata or None)
    base_config = read_base_config(Source("a", "file", str(tmp_path / "a.safetensors")))
    assert (base_config.prediction_type, base_config.prediction_type_stated, base_config.zero_terminal_snr) == expected


@pytest.mark.parametrize("marker", ["edm_mean", "edm_vpred.sigma_max"])
def test_a_base_with_the_edm_noise_schedule_is_an_error(tmp_path: Path, marker: str) -> None:
    file = tmp_path / "cosxl.safetensors"
    save_file({base_files.SDXL_KEY: torch.zeros(1), marker: torch.zeros(1)}, file)
    with pytest.raises(InputError, match="EDM") as caught:
        read_base_config(Source("a", "file", str(file)))
    assert caught.value.code == "base_schedule"


def test_the_catalogue_counts_if_the_file_states_nothing(tmp_path: Path) -> None:
    save_file({base_files.SDXL_KEY: torch.zeros(1)}, tmp_path / "a.safetensors")
    base_config = read_base_config(Source("a", "file", str(tmp_path / "a.safetensors"), "v_prediction", True))
    assert (base_config.prediction_type, base_config.prediction_type_stated, base_config.zero_terminal_snr) == (
        "v_prediction",
        True,
        True,
    )


def test_reads_the_prediction_type_of_a_folders_scheduler(tmp_path: Path, home: Home) -> None:
    folder = save_tiny_sdxl(tmp_path / "v", prediction_type="v_prediction", layers=1)
    loaded = load(folder, home)
    assert loaded.prediction_type == "v_prediction"
    assert loaded.euler_scheduler().config.prediction_type == "v_prediction"
    assert loaded.native_resolution == 64
    assert not loaded.zero_terminal_snr
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    config["rescale_betas_zero_snr"] = True
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config), "utf-8")
    loaded = load(folder, home)
    assert loaded.zero_terminal_snr
    assert float(loaded.noise_scheduler.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-6)
    sampler = loaded.euler_scheduler()
    sampler.set_timesteps(10)
    assert float(sampler.timesteps[0]) == 999  # pure noise


def test_the_bundled_configuration_is_sdxls() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads((SDXL_CONFIG / "unet" / "config.json").read_text("utf-8")))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 2_567_463_684
    for name, pad in (("tokenizer", 49407), ("tokenizer_2", 0)):
        tokenizer = CLIPTokenizer.from_pretrained(SDXL_CONFIG / name)
        assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
        assert tokenizer.pad_token_id == pad
        assert tokenizer.model_max_length == 77


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "somewhere/model.bin"])
@pytest.mark.parametrize("there", [True, False])
def test_pickles_are_an_error(tmp_path: Path, home: Home, name: str, there: bool) -> None:
    path = tmp_path / name
    if there:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x80\x04.")
    with pytest.raises(InputError) as caught:
        resolve_base(str(path), home)
    assert caught.value.code == "pickle"


def test_a_folder_of_pickles_is_an_error(base: Path, tmp_path: Path, home: Home) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(base, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(InputError, match="unet") as caught:
        load(folder, home)
    assert caught.value.code == "base_broken"


@pytest.mark.parametrize("name", ["", "no such model", "nowhere/model.safetensors", "../../no such place", "a/b/c"])
def test_a_missing_base_is_an_error_that_names_it(home: Home, name: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_base(name, home)
    assert caught.value.code == "base_missing"
    assert name in caught.value.message
    assert "sdxl" in caught.value.remedy.lower()


def test_finds_bases_by_name_path_and_repository(base: Path, single: Path, home: Home) -> None:
    home.models.mkdir(parents=True)
    shutil.copy(single, home.models / "mine.safetensors")
    assert resolve_base("mine", home).location == str(home.models / "mine.safetensors")
    assert resolve_base("mine.safetensors", home).kind == "file"
    assert resolve_base(str(base), home) == Source(str(base), "folder", str(base))
    assert resolve_base("someone/some-model", home) == Source("someone/some-model", "repo", "someone/some-model")
    noob = resolve_base("noobai-xl-vpred", home) if "noobai-xl-vpred" in base_files.guide.BASES else None
    assert noob is None or noob.prediction_type == "v_prediction"


def test_files_that_are_not_sdxl_bases_have_their_own_codes(tmp_path: Path, home: Home, tiny_config: None) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    save_file({"model.diffusion_model.x": torch.zeros(1)}, tmp_path / "sd15.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, code in (
        ("lora.safetensors", "base_lora"),
        ("sd15.safetensors", "base_kind"),
        ("torn.safetensors", "base_broken"),
        ("notes.txt", "base_format"),
        ("empty", "base_layout"),
    ):
        with pytest.raises(InputError) as caught:
            load(tmp_path / name, home)
        assert caught.value.code == code
        assert name in caught.value.message
        assert caught.value.remedy


def test_an_incomplete_single_file_is_an_error(single: Path, tmp_path: Path, home: Home, tiny_config: None) -> None:
    tensors = load_file(single)
    kept = {name: weight for name, weight in tensors.items() if "output_blocks" not in name}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load(tmp_path / "part.safetensors", home)
    assert caught.value.code == "base_broken"


def test_replaces_the_vae_and_rejects_files_that_are_not_sdxl_vaes(tmp_path: Path, base: Path, home: Home) -> None:
    other = make_pipeline(tmp_path / "tokenizers", seed=9).vae
    other.save_pretrained(tmp_path / "vae")
    loaded = load_base(resolve_base(str(base), home), dtype=torch.float32, vae=str(tmp_path / "vae"))
    assert same(loaded.vae.state_dict(), other.state_dict())
    (tmp_path / "bin").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.bin"):
        (tmp_path / "bin" / name).write_text("{}")
    (tmp_path / "there.ckpt").write_bytes(b"\x80\x04.")
    make_pipeline(tmp_path / "tokenizers").vae.save_pretrained(tmp_path / "flux")
    config = json.loads((tmp_path / "flux" / "config.json").read_text("utf-8"))
    AutoencoderKL.from_config(config | {"latent_channels": 16}).save_pretrained(tmp_path / "flux")
    for wrong, word in (
        ("nothing", "no VAE"),
        ("tokenizers", "not a VAE folder"),
        ("bin", "not a VAE folder"),
        ("vae.pt", "pickled"),
        ("there.ckpt", "pickled"),
        ("flux", "16 latent channels"),
    ):
        with pytest.raises(InputError, match=word) as caught:
            load_vae(str(tmp_path / wrong))
        assert caught.value.remedy


def test_loads_a_vae_from_a_single_file(
    base: Path, tmp_path: Path, home: Home, tiny_config: None, single: Path
) -> None:
    weights = {name: weight for name, weight in load_file(single).items() if name.startswith("first_stage_model.")}
    save_file(weights, tmp_path / "whole names.safetensors")
    save_file(
        {name.removeprefix("first_stage_model."): weight for name, weight in weights.items()},
        tmp_path / "b.safetensors",
    )
    for name in ("whole names", "b"):
        assert same(load_vae(str(tmp_path / f"{name}.safetensors")).state_dict(), load(base, home).vae.state_dict())
