"""A tiny Stable Diffusion XL pipeline with random weights, built in under a second.

Its structure is SDXL's (two text encoders of different widths, the second with projection, text_time conditioning,
three levels with attention on the lower two, a VAE of factor 8); its sizes are not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

NATIVE_RESOLUTION = 64
WIDTHS = (16, 24)


def write_tokenizer(folder: Path, pad_token: str) -> None:
    """Write a CLIP tokenizer with single bytes as tokens and no merges, which can encode every text."""
    folder.mkdir(parents=True, exist_ok=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in printable] + [chr(256 + index) for index in range(256 - len(printable))]
    words = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77, pad_token=pad_token
    ).save_pretrained(folder)


def make_pipeline(
    folder: Path,
    *,
    seed: int = 0,
    prediction_type: str = "epsilon",
    layers: int = 2,
    channels: tuple[int, int, int] = (16, 32, 32),
    depths: tuple[int, int, int] = (1, 1, 2),
    widths: tuple[int, int] = WIDTHS,
    text_layers: tuple[int, int] = (3, 3),
    vae_channels: tuple[int, int, int, int] = (8, 8, 16, 16),
) -> StableDiffusionXLPipeline:
    """Build the pipeline on the CPU in fp32; the tokenizers' files are written to `folder`.

    `layers` is the UNet's layers per block, `channels` the channels and `depths` the transformer blocks per attention
    of its levels. `widths` and `text_layers` are the text encoders', `vae_channels` the VAE's.
    """
    torch.manual_seed(seed)
    tokenizers = []
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        write_tokenizer(folder / name, pad)
        tokenizers.append(CLIPTokenizer.from_pretrained(folder / name))

    def text_config(width: int, layers: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizers[0]),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            projection_dim=width,
            bos_token_id=tokenizers[0].bos_token_id,
            eos_token_id=tokenizers[0].eos_token_id,
        )

    unet = UNet2DConditionModel(
        sample_size=NATIVE_RESOLUTION // 8,
        block_out_channels=channels,
        layers_per_block=layers,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=list(depths),
        attention_head_dim=[1, 2, 2],
        cross_attention_dim=sum(widths),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=widths[1] + 6 * 8,
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=list(vae_channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=NATIVE_RESOLUTION,
        scaling_factor=0.13025,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction_type,
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config(widths[0], text_layers[0])),
        text_encoder_2=CLIPTextModelWithProjection(text_config(widths[1], text_layers[1])),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def save_tiny_sdxl(folder: Path, **options: Any) -> Path:
    """Write the pipeline as a diffusers folder and return that; options are those of `make_pipeline`."""
    pipeline = make_pipeline(folder, **options)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
