"""Reading the header of a LoRA file: which files are refused."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest

from lora_studio.errors import InputError
from lora_studio.lora.header import read_lora_header


def header(names: dict[str, list[int]], *, metadata: dict | None = None, size: int = 4) -> bytes:
    """Return a safetensors file of zeros with these tensors in its header."""
    entries: dict = {"__metadata__": metadata} if metadata is not None else {}
    entries |= {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [size * i, size * (i + 1)]}
        for i, (name, shape) in enumerate(names.items())
    }
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size * len(names))


UNET = "lora_unet_input_blocks_4_1_proj_in"
PAIR = {f"{UNET}.lora_down.weight": [1, 1], f"{UNET}.lora_up.weight": [1, 1]}
REFUSED = {
    "empty": (b"", "not a complete safetensors file"),
    "text": (b"hello, this is not a model", "not a complete safetensors file"),
    "cut": (header(PAIR)[:40], "not a complete safetensors file"),
    "huge header": (struct.pack("<Q", 5 * 1024**2) + b" " * (5 * 1024**2), "larger than 4 MB"),
    "not JSON": (struct.pack("<Q", 4) + b"{{{{", "not valid JSON"),
    "deep JSON": (struct.pack("<Q", 200_000) + b"[" * 200_000, "not valid JSON"),
    "a list": (struct.pack("<Q", 2) + b"[]", "not valid JSON"),
    "twice": (struct.pack("<Q", 16) + b'{"a": 1, "a": 2}', "not valid JSON"),
    "nothing in it": (header({}), "does not look like a LoRA"),
    "metadata": (header(PAIR, metadata={"a": 1}), "metadata that is not text"),
    "many": (header({f"lora_unet_{i}.alpha": [1] for i in range(10_001)}), "more than 10,000 tensors"),
    "entry": (header(PAIR).replace(b'"dtype"', b'"dtypo"'), "damaged header"),
    "SD 1.5": (header({"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": [1]}), "Stable Diffusion 1"),
    "Flux": (header({"lora_unet_double_blocks_0_img_attn_proj.alpha": [1]}), "another architecture"),
    "a FLUX file of ComfyUI": (header({"diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight": [1]}), "FLUX"),
    "OFT": (header({f"{UNET}.oft_blocks": [1]}), "OFT"),
    "BOFT of peft": (header({"base_model.model.mid_block.attentions.0.proj_in.boft_R": [1]}), "BOFT"),
    "GLoRA": (header({f"{UNET}.a1.weight": [1], f"{UNET}.b1.weight": [1]}), "GLoRA"),
    "IA3 of peft": (header({"base_model.model.mid_block.attentions.0.proj_in.ia3_l": [1]}), "IA3"),
    "bias": (header(PAIR | {f"{UNET}.lora_up.bias": [1]}), "lora_bias"),
    "two spellings of one layer": (
        header(PAIR | {"lycoris_input_blocks_4_1_proj_in.lora_down.weight": [1, 1]}),
        "unknown set of tensors",
    ),
    "embeddings alone": (header({"bundle_emb.word.clip_l": [1]}), "does not look like a LoRA"),
    "half a LoHa": (header({f"{UNET}.hada_w1_a": [1]}), "unknown set of tensors"),
    "two in one": (
        header(PAIR | {f"{UNET}.lokr_w1": [1], f"{UNET}.lokr_w2": [1]}),
        "unknown set of tensors",
    ),
    "a base": (header({"model.diffusion_model.out.0.bias": [1]}), "a base"),
    "other": (header({"weights": [1]}), "does not look like a LoRA"),
    "half": (header({f"{UNET}.lora_down.weight": [1, 1]}), "unknown set of tensors"),
    "alpha alone": (header(PAIR | {"lora_unet_x.alpha": [1]}), "unknown set of tensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_not_an_sdxl_lora_are_refused(tmp_path: Path, name: str) -> None:
    content, why = REFUSED[name]
    path = tmp_path / "some name.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=why) as caught:
        read_lora_header(path)
    assert "some name.safetensors" in caught.value.message
    assert caught.value.remedy


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.bin", "x.safetensors"])
def test_pickle_is_refused_and_never_run(tmp_path: Path, name: str) -> None:
    path, canary = tmp_path / name, tmp_path / "canary"
    path.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(InputError):
        read_lora_header(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes())
    assert canary.exists()


def test_networks_that_cannot_be_read_have_a_code_of_their_own(tmp_path: Path) -> None:
    for part in ("oft_blocks", "boft_R", "a1.weight", "ia3_l", "vera_lambda_b", "set_weight"):
        path = tmp_path / "x.safetensors"
        path.write_bytes(header({f"{UNET}.{part}": [1]}))
        with pytest.raises(InputError) as caught:
            read_lora_header(path)
        assert caught.value.code == "lora_network", part
        assert "lora extract" in caught.value.remedy


def test_bundled_embeddings_are_listed_beside_the_layers(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(header({"bundle_emb.my word.clip_l": [1], "bundle_emb.my word.clip_g_out": [1]} | PAIR))
    lora = read_lora_header(path)
    assert lora.embeddings == ["my word"]
    assert list(lora.modules) == [UNET]
    assert not lora.has_text_encoder


def test_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.safetensors does not exist"):
        read_lora_header(tmp_path / "gone.safetensors")
