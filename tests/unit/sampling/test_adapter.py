"""LoRA files: what is refused, and what a loaded one does to the base."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import ImageChops
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_studio.errors import InputError
from lora_studio.lora.header import read_lora_header
from lora_studio.sampling.adapter import apply_lora
from lora_studio.sampling.pipeline import SamplingPipeline, load_sampling_pipeline
from lora_studio.settings.choices import Precision
from lora_studio.workspace.project import Home
from tests.support.kohya_lora import attention_layers, make_lora, save_lora, text_layers

DRAW = {"seed": 7, "steps": 2, "guidance": 5.0, "width": 64, "height": 64}
PEER = Path(__file__).parents[2] / "data" / "kohya_tiny_sdxl_lora.safetensors"


@pytest.fixture(scope="module")
def pipeline(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> SamplingPipeline:
    return load_sampling_pipeline(str(tiny_base), home=Home(tmp_path_factory.mktemp("home")), precision=Precision.AUTO)


def draw(pipeline: SamplingPipeline, prompt: str = "a cat") -> torch.Tensor:
    """Latents and picture alike are decided by the pipeline's state; the picture is what users see."""
    image = pipeline.draw(pipeline.encode(prompt, clip_skip=2), pipeline.encode_negative("", clip_skip=2), **DRAW)
    assert image is not None
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)


def latents(pipeline: SamplingPipeline, prompt: str = "a cat") -> torch.Tensor:
    """What diffusers' own call gives, text and all: the independent reference."""
    return pipeline.pipe(
        prompt,
        num_inference_steps=2,
        guidance_scale=5.0,
        width=64,
        height=64,
        output_type="latent",
        generator=torch.Generator("cpu").manual_seed(7),
    ).images


def one_step(pipe: StableDiffusionXLPipeline) -> torch.Tensor:
    """What the UNet says of noise and a text."""
    with torch.no_grad():
        hidden, _, pooled, _ = pipe.encode_prompt("a cat", do_classifier_free_guidance=False)
        return pipe.unet(
            torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)),
            torch.tensor([500]),
            hidden,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": torch.zeros(1, 6)},
            return_dict=False,
        )[0]


def header(names: dict[str, list[int]], *, metadata: dict | None = None, size: int = 4) -> bytes:
    """A safetensors file of zeros with any header."""
    entries: dict = {"__metadata__": metadata} if metadata is not None else {}
    entries |= {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [size * i, size * (i + 1)]}
        for i, (name, shape) in enumerate(names.items())
    }
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size * len(names))


def test_picture_is_what_diffusers_draws(pipeline: SamplingPipeline) -> None:
    image = pipeline.draw(pipeline.encode("a cat", clip_skip=2), pipeline.encode_negative("", clip_skip=2), **DRAW)
    expected = pipeline.pipe(
        "a cat",
        num_inference_steps=2,
        guidance_scale=5.0,
        width=64,
        height=64,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]
    assert ImageChops.difference(image, expected).getbbox() is None


@pytest.mark.parametrize(
    "spelling",
    [
        {"sgm": True},
        {"sgm": False, "te1_text_model": False},
        {"text_encoders": False, "alpha": 3.0},
        {"ranks": (2, 4, 3)},
        {"alpha": None, "ranks": (2, 4)},
    ],
    ids=str,
)
def test_strength_adds_so_much_of_the_delta(pipeline: SamplingPipeline, tmp_path: Path, spelling: dict) -> None:
    tensors, deltas = make_lora(pipeline.pipe, **spelling)
    lora = read_lora_header(save_lora(tensors, tmp_path / "x.safetensors"))
    bare = latents(pipeline)
    with apply_lora(pipeline.pipe, lora) as adapter:
        assert adapter.matched == adapter.total == len(deltas)
        adapter.set_strength(0.7)
        drawn = latents(pipeline)
    layers = {("unet", name): layer for name, layer in attention_layers(pipeline.pipe).items()}
    layers |= {(f"te{n}", name): layer for n in (1, 2) for name, layer in text_layers(pipeline.pipe, n).items()}
    before = {key: layers[key].weight.detach().clone() for key in deltas}
    try:
        for key, delta in deltas.items():
            layers[key].weight.data += 0.7 * delta
        merged = latents(pipeline)
    finally:
        for key, weight in before.items():
            layers[key].weight.data = weight
    assert (drawn - bare).abs().max() > 0.05
    torch.testing.assert_close(drawn, merged, atol=2e-4, rtol=1e-3)


def test_strength_zero_is_the_base_bit_for_bit(pipeline: SamplingPipeline, tmp_path: Path) -> None:
    lora = read_lora_header(save_lora(make_lora(pipeline.pipe)[0], tmp_path / "x.safetensors"))
    bare = draw(pipeline)
    with apply_lora(pipeline.pipe, lora) as adapter:
        adapter.set_strength(0)
        off = draw(pipeline)
        adapter.set_strength(1.0)
        on = draw(pipeline)
        adapter.set_strength(0)
        off_again = draw(pipeline)
    gone = draw(pipeline)
    assert torch.equal(off, bare)
    assert torch.equal(off_again, bare)
    assert torch.equal(gone, bare)
    assert not torch.equal(on, bare)


def test_half_precision_file_works_in_the_bases_arithmetic(pipeline: SamplingPipeline, tmp_path: Path) -> None:
    tensors = {name: weight.half() for name, weight in make_lora(pipeline.pipe)[0].items()}
    half = read_lora_header(save_lora(tensors, tmp_path / "half.safetensors"))
    full = read_lora_header(save_lora({n: w.float() for n, w in tensors.items()}, tmp_path / "full.safetensors"))
    with apply_lora(pipeline.pipe, half):
        first = latents(pipeline)
    with apply_lora(pipeline.pipe, full):
        second = latents(pipeline)
    assert torch.equal(first, second)


def test_diffusers_own_format_keeps_its_alpha(pipeline: SamplingPipeline, tmp_path: Path) -> None:
    tensors, deltas = make_lora(pipeline.pipe, text_encoders=False, sgm=False, alpha=2.0)
    kohya = read_lora_header(save_lora(tensors, tmp_path / "kohya.safetensors"))
    names = {name.replace(".", "_"): name for _, name in deltas}
    peft = {}
    for key, weight in tensors.items():
        layer, _, part = key.removeprefix("lora_unet_").partition(".")
        if part != "alpha":
            peft[f"unet.{names[layer]}.{'lora_A' if part.startswith('lora_down') else 'lora_B'}.weight"] = weight
    metadata = {"unet.r": 4, "unet.lora_alpha": 2, "unet.target_modules": list(names.values())}
    other = read_lora_header(
        save_lora(peft, tmp_path / "peft.safetensors", format="pt", lora_adapter_metadata=json.dumps(metadata))
    )
    with apply_lora(pipeline.pipe, kohya):
        first = latents(pipeline)
    with apply_lora(pipeline.pipe, other) as adapter:
        assert adapter.matched == adapter.total == len(deltas)
        second = latents(pipeline)
    assert torch.equal(first, second)


def test_file_of_kohyas_trainer_matches_every_layer(pipeline: SamplingPipeline) -> None:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=[1, 1, 2],
        cross_attention_dim=160,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=96 + 6 * 256,
    )

    def config(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=514,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=12,
            num_attention_heads=2,
            projection_dim=width,
            bos_token_id=512,
            eos_token_id=513,
        )

    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL(),
        text_encoder=CLIPTextModel(config(64)),
        text_encoder_2=CLIPTextModelWithProjection(config(96)),
        tokenizer=pipeline.pipe.tokenizer,
        tokenizer_2=pipeline.pipe.tokenizer_2,
        unet=unet,
        scheduler=pipeline.pipe.scheduler,
        add_watermarker=False,
    )
    lora = read_lora_header(PEER)
    assert lora.has_text_encoder
    assert lora.model_hash == lora.metadata["sshs_model_hash"]
    with apply_lora(pipe, lora) as adapter:
        # 264 layers of text encoders as in SDXL, halved by 12 layers each, and the UNet's.
        assert (adapter.matched, adapter.total) == (336, 336)
        first = pipe.unet.down_blocks[1].attentions[0].proj_in
        assert first.scaling["studio"] == 0.5  # alpha 4 of dim 8
        drawn = one_step(pipe)
    bare = one_step(pipe)
    pipe.load_lora_weights(str(PEER.parent), weight_name=PEER.name)
    torch.testing.assert_close(drawn, one_step(pipe), atol=1e-5, rtol=1e-5)
    assert (drawn - bare).abs().max() > 1e-3


def test_another_models_lora_is_refused_and_leaves_no_trace(pipeline: SamplingPipeline) -> None:
    bare = draw(pipeline)
    with (
        pytest.raises(InputError, match="does not fit this base") as caught,
        apply_lora(pipeline.pipe, read_lora_header(PEER)),
    ):
        pass
    assert "sdxl_base_v1-0" in str(caught.value)
    assert torch.equal(draw(pipeline), bare)


def test_layers_that_the_base_lacks_are_refused_not_ignored(pipeline: SamplingPipeline, tmp_path: Path) -> None:
    tensors = {
        "lora_unet_down_blocks_9_attentions_0_proj_in.lora_down.weight": torch.ones(4, 32),
        "lora_unet_down_blocks_9_attentions_0_proj_in.lora_up.weight": torch.ones(32, 4),
    }
    lora = read_lora_header(save_lora(tensors, tmp_path / "x.safetensors"))
    with pytest.raises(InputError, match=r"x\.safetensors does not fit this base"), apply_lora(pipeline.pipe, lora):
        pass


def test_some_layers_that_the_base_lacks_are_counted(pipeline: SamplingPipeline, tmp_path: Path) -> None:
    tensors, deltas = make_lora(pipeline.pipe, text_encoders=False, sgm=False)
    tensors["lora_unet_up_blocks_9_attentions_1_proj_in.lora_down.weight"] = torch.ones(4, 32)
    tensors["lora_unet_up_blocks_9_attentions_1_proj_in.lora_up.weight"] = torch.ones(32, 4)
    tensors["lora_unet_up_blocks_9_attentions_1_proj_in.alpha"] = torch.tensor(2.0)
    lora = read_lora_header(save_lora(tensors, tmp_path / "x.safetensors"))
    with apply_lora(pipeline.pipe, lora) as adapter:
        assert (adapter.matched, adapter.total) == (len(deltas), len(deltas) + 1)
        assert adapter.missing == ["lora_unet_up_blocks_9_attentions_1_proj_in"]


def test_weights_that_are_not_finite_are_refused(pipeline: SamplingPipeline, tmp_path: Path) -> None:
    tensors, _ = make_lora(pipeline.pipe, text_encoders=False)
    next(iter(tensors.values()))[0, 0] = float("nan")
    lora = read_lora_header(save_lora(tensors, tmp_path / "broken.safetensors"))
    with pytest.raises(InputError, match=r"broken\.safetensors contains NaN or infinity"):
        apply_lora(pipeline.pipe, lora).__enter__()


def test_data_shorter_than_the_header_says_is_refused(pipeline: SamplingPipeline, tmp_path: Path) -> None:
    path = save_lora(make_lora(pipeline.pipe, text_encoders=False)[0], tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"x\.safetensors is damaged"):
        apply_lora(pipeline.pipe, read_lora_header(path)).__enter__()


UNET = "lora_unet_input_blocks_4_1_proj_in"
PAIR = {f"{UNET}.lora_down.weight": [1, 1], f"{UNET}.lora_up.weight": [1, 1]}
REFUSED = {
    "empty": (b"", "not a complete safetensors file"),
    "text": (b"hello, this is no model at all", "not a complete safetensors file"),
    "cut": (header(PAIR)[:40], "not a complete safetensors file"),
    "huge header": (struct.pack("<Q", 5 * 1024**2) + b" " * (5 * 1024**2), "larger than 4 MB"),
    "no JSON": (struct.pack("<Q", 4) + b"{{{{", "not valid JSON"),
    "deep JSON": (struct.pack("<Q", 200_000) + b"[" * 200_000, "not valid JSON"),
    "a list": (struct.pack("<Q", 2) + b"[]", "not valid JSON"),
    "twice": (struct.pack("<Q", 16) + b'{"a": 1, "a": 2}', "not valid JSON"),
    "nothing in it": (header({}), "does not look like a LoRA"),
    "metadata": (header(PAIR, metadata={"a": 1}), "metadata that is not text"),
    "many": (header({f"lora_unet_{i}.alpha": [1] for i in range(10_001)}), "more than 10,000 tensors"),
    "entry": (header(PAIR).replace(b'"dtype"', b'"dtypo"'), "damaged header"),
    "SD 1.5": (header({"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": [1]}), "Stable Diffusion 1"),
    "Flux": (header({"lora_unet_double_blocks_0_img_attn_proj.alpha": [1]}), "another architecture"),
    "OFT": (header({f"{UNET}.oft_blocks": [1]}), "LyCORIS"),
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
def test_file_that_is_no_lora_for_sdxl_is_refused(tmp_path: Path, name: str) -> None:
    content, why = REFUSED[name]
    path = tmp_path / "some name.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=why) as caught:
        read_lora_header(path)
    assert "some name.safetensors" in caught.value.message
    assert caught.value.remedy


class Canary:
    """Unpickling it makes a file."""

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


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.safetensors does not exist"):
        read_lora_header(tmp_path / "gone.safetensors")


def test_clip_skip_counts_from_the_last_layer(pipeline: SamplingPipeline) -> None:
    def hidden(skip: int | None) -> torch.Tensor:
        return pipeline.pipe.encode_prompt("a cat", do_classifier_free_guidance=False, clip_skip=skip)[0]

    assert torch.equal(pipeline.encode("a cat", clip_skip=2).hidden, hidden(None))
    assert torch.equal(pipeline.encode("a cat", clip_skip=3).hidden, hidden(1))
    assert not torch.equal(pipeline.encode("a cat", clip_skip=1).hidden, hidden(None))
    with pytest.raises(InputError, match="clip_skip is 9"):
        pipeline.encode("a cat", clip_skip=9)


def test_v_prediction_base_is_sampled_as_such(tmp_path: Path, home: Home) -> None:
    from tests.support.tiny_sdxl import save_tiny_sdxl

    folder = save_tiny_sdxl(tmp_path / "v", prediction_type="v_prediction")
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"rescale_betas_zero_snr": True}))
    scheduler = load_sampling_pipeline(str(folder), home=home, precision=Precision.AUTO).pipe.scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] == 999
    assert type(scheduler).__name__ == "EulerDiscreteScheduler"
