"""Applied LoRA files: their effect on the base at each strength, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_studio.errors import InputError
from lora_studio.lora.header import read_lora_header
from lora_studio.sampling.adapter import Strength, apply_lora, apply_loras
from lora_studio.sampling.pipeline import SamplingPipeline, load_sampling_pipeline
from lora_studio.settings.choices import Precision
from lora_studio.workspace.project import Home
from tests.support.kohya_lora import attention_layers, make_lora, save_lora, text_layers

SETTINGS = {"seed": 7, "steps": 2, "guidance": 5.0, "width": 64, "height": 64}
PEER = Path(__file__).parents[2] / "data" / "kohya_tiny_sdxl_lora.safetensors"


@pytest.fixture(scope="module")
def pipeline(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> SamplingPipeline:
    return load_sampling_pipeline(str(tiny_base), home=Home(tmp_path_factory.mktemp("home")), precision=Precision.AUTO)


def generate(pipeline: SamplingPipeline, prompt: str = "a cat") -> torch.Tensor:
    """Return the bytes of a generated image."""
    image = pipeline.generate(
        pipeline.encode(prompt, clip_skip=2), pipeline.encode_negative("", clip_skip=2), **SETTINGS
    )
    assert image is not None
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)


def latents(pipeline: SamplingPipeline, prompt: str = "a cat") -> torch.Tensor:
    """Return the latents of diffusers' own call."""
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
    """Return the UNet's prediction for noise and a prompt."""
    with torch.no_grad():
        hidden, _, pooled, _ = pipe.encode_prompt("a cat", do_classifier_free_guidance=False)
        return pipe.unet(
            torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)),
            torch.tensor([500]),
            hidden,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": torch.zeros(1, 6)},
            return_dict=False,
        )[0]


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
def test_strength_scales_the_change_of_the_weights(pipeline: SamplingPipeline, tmp_path: Path, spelling: dict) -> None:
    tensors, deltas = make_lora(pipeline.pipe, **spelling)
    lora = read_lora_header(save_lora(tensors, tmp_path / "x.safetensors"))
    base = latents(pipeline)
    with apply_lora(pipeline.pipe, lora) as adapter:
        assert adapter.matched == adapter.total == len(deltas)
        adapter.set_strength(0.7)
        output = latents(pipeline)
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
    assert (output - base).abs().max() > 0.05
    torch.testing.assert_close(output, merged, atol=2e-4, rtol=1e-3)


def test_strength_0_equals_the_base_exactly(pipeline: SamplingPipeline, tmp_path: Path) -> None:
    lora = read_lora_header(save_lora(make_lora(pipeline.pipe)[0], tmp_path / "x.safetensors"))
    base = generate(pipeline)
    with apply_lora(pipeline.pipe, lora) as adapter:
        adapter.set_strength(0)
        off = generate(pipeline)
        adapter.set_strength(1.0)
        on = generate(pipeline)
        adapter.set_strength(0)
        off_again = generate(pipeline)
    removed = generate(pipeline)
    assert torch.equal(off, base)
    assert torch.equal(off_again, base)
    assert torch.equal(removed, base)
    assert not torch.equal(on, base)


def test_several_loras_add_up_and_text_encoders_have_a_strength_of_their_own(
    pipeline: SamplingPipeline, tmp_path: Path
) -> None:
    made = [make_lora(pipeline.pipe, seed=seed) for seed in (1, 2)]
    paths = [save_lora(tensors, tmp_path / f"{number}.safetensors") for number, (tensors, _) in enumerate(made)]
    strengths = [Strength(0.6, 0.2), Strength(-0.3, 0)]
    before = generate(pipeline)
    layers = {("unet", name): layer for name, layer in attention_layers(pipeline.pipe).items()}
    layers |= {(f"te{n}", name): layer for n in (1, 2) for name, layer in text_layers(pipeline.pipe, n).items()}
    original = {key: layer.weight.detach().clone() for key, layer in layers.items()}
    with apply_loras(pipeline.pipe, [read_lora_header(path) for path in paths]) as stack:
        stack.set_strengths(strengths)
        for key, layer in layers.items():
            used = [strength.of(key[0]) * deltas[key] for strength, (_, deltas) in zip(strengths, made, strict=True)]
            torch.testing.assert_close(layer.weight.detach(), original[key] + sum(used), atol=1e-6, rtol=1e-5)
        stack.set_strengths([Strength(0, 0), Strength(0, 0)])
        assert torch.equal(generate(pipeline), before)
    assert torch.equal(generate(pipeline), before)


def test_a_small_change_of_a_bf16_weight_is_kept_in_the_mean(tmp_path: Path, pipeline: SamplingPipeline) -> None:
    tensors, deltas = make_lora(pipeline.pipe, text_encoders=False)
    lora = read_lora_header(save_lora(tensors, tmp_path / "x.safetensors"))
    layer = attention_layers(pipeline.pipe)[next(iter(deltas))[1]]
    original = layer.weight.data
    rounded = torch.ones_like(original, dtype=torch.bfloat16)
    try:
        layer.weight.data = rounded.clone()
        step = 2**-8  # the next larger bf16 number is 1 + 2 ** -7
        delta = next(iter(deltas.values()))
        with apply_lora(pipeline.pipe, lora) as adapter:
            strength = step / 2 / float(delta.abs().mean())
            adapter.set_strength(strength)
            first = layer.weight.data.clone()
            adapter.set_strength(strength)
            assert torch.equal(layer.weight.data, first)
            change = float(((first.float() - 1) * delta.sign()).mean())
        assert change == pytest.approx(step / 2, rel=0.2)
        assert torch.equal(layer.weight.data, rounded)
    finally:
        layer.weight.data = original


def test_half_precision_file_is_used_in_the_bases_dtype(pipeline: SamplingPipeline, tmp_path: Path) -> None:
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


@pytest.mark.slow
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
        output = one_step(pipe)
    base = one_step(pipe)
    pipe.load_lora_weights(str(PEER.parent), weight_name=PEER.name)
    torch.testing.assert_close(output, one_step(pipe), atol=1e-5, rtol=1e-5)
    assert (output - base).abs().max() > 1e-3


def test_lora_for_another_model_is_refused_and_leaves_the_base_unchanged(pipeline: SamplingPipeline) -> None:
    base = generate(pipeline)
    with (
        pytest.raises(InputError, match="does not fit this base") as caught,
        apply_lora(pipeline.pipe, read_lora_header(PEER)),
    ):
        pass
    assert "sdxl_base_v1-0" in str(caught.value)
    assert torch.equal(generate(pipeline), base)


def test_lora_without_any_layer_of_the_base_is_refused(pipeline: SamplingPipeline, tmp_path: Path) -> None:
    tensors = {
        "lora_unet_down_blocks_9_attentions_0_proj_in.lora_down.weight": torch.ones(4, 32),
        "lora_unet_down_blocks_9_attentions_0_proj_in.lora_up.weight": torch.ones(32, 4),
    }
    lora = read_lora_header(save_lora(tensors, tmp_path / "x.safetensors"))
    with pytest.raises(InputError, match=r"x\.safetensors does not fit this base"), apply_lora(pipeline.pipe, lora):
        pass


def test_missing_layers_are_counted(pipeline: SamplingPipeline, tmp_path: Path) -> None:
    tensors, deltas = make_lora(pipeline.pipe, text_encoders=False, sgm=False)
    tensors["lora_unet_up_blocks_9_attentions_1_proj_in.lora_down.weight"] = torch.ones(4, 32)
    tensors["lora_unet_up_blocks_9_attentions_1_proj_in.lora_up.weight"] = torch.ones(32, 4)
    tensors["lora_unet_up_blocks_9_attentions_1_proj_in.alpha"] = torch.tensor(2.0)
    lora = read_lora_header(save_lora(tensors, tmp_path / "x.safetensors"))
    with apply_lora(pipeline.pipe, lora) as adapter:
        assert (adapter.matched, adapter.total) == (len(deltas), len(deltas) + 1)
        assert adapter.missing == ["lora_unet_up_blocks_9_attentions_1_proj_in"]


def test_non_finite_weights_are_refused(pipeline: SamplingPipeline, tmp_path: Path) -> None:
    tensors, _ = make_lora(pipeline.pipe, text_encoders=False)
    next(iter(tensors.values()))[0, 0] = float("nan")
    lora = read_lora_header(save_lora(tensors, tmp_path / "broken.safetensors"))
    with pytest.raises(InputError, match=r"broken\.safetensors contains NaN or infinity"):
        apply_lora(pipeline.pipe, lora).__enter__()


def test_truncated_file_is_refused(pipeline: SamplingPipeline, tmp_path: Path) -> None:
    path = save_lora(make_lora(pipeline.pipe, text_encoders=False)[0], tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"x\.safetensors is damaged"):
        apply_lora(pipeline.pipe, read_lora_header(path)).__enter__()
