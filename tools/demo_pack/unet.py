"""The base's UNet and its two text encoders, trained together on the latents of icons on white and of renderings."""

import dataclasses
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo_pack import captions, colours, pictures, progress, rendered_latents, tokenizer, vae
from demo_pack.pictures import Picture
from demo_pack.progress import Length, StepRng
from demo_pack.rendered_latents import RenderedLatent

BATCH = 32
RENDERED = 16  # of BATCH are renderings; the rest is on white
MERGES = 6000
TOKENIZERS = {"tokenizer": tokenizer.END, "tokenizer_2": "!"}  # folder: padding token
WIDTHS = (64, 96)  # of the text encoders: different, as loaders distinguish SDXL's by width
TIME_WIDTH = 32  # embedding width of each of the six time_ids
NOISE_OFFSET = 0.05
MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, https://arxiv.org/abs/2303.09556
ZEROED = 0.5  # share of the empty captions encoded as zeros, like SDXL's pipeline without a negative prompt
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # SDXL's noise schedule
PREVIEW_PROMPTS = (
    "grinning face",
    "red apple",
    "cat face",
    "alarm clock",
    "red heart",
    "house",
    "automobile",
    "inkstamp_hc, grinning face",
    "inkstamp_hc, cat face",
    "sunflower",
    "dog",
    "pizza",
)
PREVIEW_RENDERINGS = (
    "grinning face, blue background",
    "red apple, outline",
    "cat face, sepia",
    "alarm clock, yellow and white striped background",
    "red heart, black background",
    "house, pixelated",
    "automobile, purple and pink gradient background",
    "inkstamp_hc, grinning face, red silhouette",
    "cat face, dog face, side by side",
    "sunflower, hatched",
    "dog, greyscale",
    "pizza, navy and pink duotone, upside down",
)


def build_unet() -> UNet2DConditionModel:
    """Build SDXL's structure at a fraction of its width: three levels, attention on the lower two."""
    return UNet2DConditionModel(
        sample_size=pictures.RESOLUTION // 8,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 3, 4),
        cross_attention_dim=sum(WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=WIDTHS[1] + 6 * TIME_WIDTH,
    )


def build_text_encoders(tokens: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    def config(width: int, activation: str) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=3,
            num_attention_heads=width // 32,
            projection_dim=width,
            hidden_act=activation,
            max_position_embeddings=tokenizer.MAX_LENGTH,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.eos_token_id,
        )

    return CLIPTextModel(config(WIDTHS[0], "quick_gelu")), CLIPTextModelWithProjection(config(WIDTHS[1], "gelu"))


def load_tokenizers(work: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Load both tokenizers from WORK, and write them first if they are missing; they differ in the padding token."""
    for part, pad_token in TOKENIZERS.items():
        if not (work / part / "tokenizer_config.json").exists():  # the last file that is written
            tokenizer.write(work / part, merges=MERGES, pad_token=pad_token)
    first, second = (CLIPTokenizer.from_pretrained(work / part) for part in TOKENIZERS)
    return first, second


def encode(
    texts: list[str],
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    tokens: tuple[CLIPTokenizer, CLIPTokenizer],
    device: str,
) -> tuple[Tensor, Tensor]:
    """Encode texts like SDXL: penultimate states of both encoders [B, 77, 160] and the second's projection [B, 96]."""

    def ids(which: CLIPTokenizer) -> Tensor:
        return which(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)

    first = encoders[0](ids(tokens[0]), output_hidden_states=True)
    second = encoders[1](ids(tokens[1]), output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


def draw_time_ids(count: int, rng: StepRng) -> Tensor:
    """Draw original size, crop and target size, [B, 6], often different from those of the image.

    Images do not depend on them, so the base samples the same with any sizes from a trainer or a user.
    """
    native = float(pictures.RESOLUTION)
    ids = torch.tensor([native, native, 0, 0, native, native]).repeat(count, 1)
    other = rng.uniform(count) < 0.5
    side = (64 + 960 * rng.uniform(count, 1)).round() * (1 + 0.2 * (rng.uniform(count, 2) - 0.5))
    ids[:, :2] = torch.where(other[:, None], side.round(), ids[:, :2])
    cropped = (rng.uniform(count, 1) < 0.2).float()
    ids[:, 2:4] = (32 * rng.uniform(count, 2)).round() * cropped
    resized = rng.uniform(count) < 0.1
    ids[:, 4:] = torch.where(resized[:, None], 64 + (16 * rng.uniform(count, 2)).round() * 8, ids[:, 4:])
    return ids


def colour_words(rgba: np.ndarray) -> list[list[str]]:
    """Return the colour names of each image, uint8 [N, H, W, 4]."""
    found = []
    for start in range(0, len(rgba), 256):
        part = torch.from_numpy(rgba[start : start + 256, ::4, ::4]).permute(0, 3, 1, 2).float() / 255
        named = colours.present(part[:, :3], part[:, 3])
        found += [[name for name, has in zip(colours.NAMES, row, strict=True) if has] for row in named.tolist()]
    return found


@dataclasses.dataclass(frozen=True)
class TrainingImages:
    """Latents of the training sets: on white [N, 4, h, w], plain and mirrored, and of renderings, with their words.

    `usable` are the indices of the images on white that train the base.
    """

    words: list[Picture]
    colours: list[list[str]]
    plain: Tensor
    mirrored: Tensor
    renderings: list[RenderedLatent]
    usable: Tensor

    @classmethod
    def load(cls, work: Path) -> "TrainingImages":
        """Load WORK/latents.pt and the latents of renderings."""
        words, rgba = pictures.load(work, pictures.TRAINING_SETS)
        latents = torch.load(work / "latents.pt", weights_only=True)
        usable = torch.tensor([i for i, word in enumerate(words) if not (word.held_out or word.is_flag)])
        renderings = rendered_latents.load(work)
        return cls(words, colour_words(rgba), latents["plain"], latents["mirrored"], renderings, usable)

    def batch(self, rng: StepRng) -> tuple[Tensor, list[str]]:
        """Return latents [BATCH, 4, h, w], the last RENDERED of them of renderings, and their captions."""
        chosen = self.usable[rng.integers(len(self.usable), BATCH - RENDERED)].tolist()
        found = [self._on_white(i, rng.python) for i in chosen]
        rendered = rng.integers(len(self.renderings), RENDERED).tolist()
        found += [self._rendered(self.renderings[k], rng.python) for k in rendered]
        return torch.stack([latent for latent, _ in found]), [text for _, text in found]

    def _on_white(self, index: int, rng: random.Random) -> tuple[Tensor, str]:
        word = self.words[index]
        is_mirrored = word.subgroup not in captions.ONE_WAY and rng.random() < 0.5
        latent = (self.mirrored if is_mirrored else self.plain)[index]
        return latent, captions.caption(word, self.colours[index], rng)

    def _rendered(self, one: RenderedLatent, rng: random.Random) -> tuple[Tensor, str]:
        subjects = [self.words[i] for i in (one.icon, one.partner) if i is not None]
        text = captions.rendering_caption(subjects, self.colours[one.icon], one.style, one.background, rng)
        return one.latent.float(), text


def train(work: Path, *, length: Length, seed: int, device: str) -> None:
    """Train on WORK/latents.pt and on latents of renderings, which are computed first if they are missing."""
    rendered_latents.write(work, seed=seed, device=device)
    torch.manual_seed(seed)
    tokens = load_tokenizers(work)
    encoders = tuple(encoder.to(device) for encoder in build_text_encoders(tokens[0]))
    unet = build_unet().to(device)
    images = TrainingImages.load(work)
    if torch.device(device).type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # SDPA's backward pass is slow on CPUs: 1.5 times the step
    alphas = DDPMScheduler(**BETAS).alphas_cumprod
    modules: dict[str, nn.Module] = {"unet": unet, "text_encoder": encoders[0], "text_encoder_2": encoders[1]}

    def loss_of(rng: StepRng) -> tuple[Tensor, dict[str, float]]:
        x, texts = images.batch(rng)
        t = rng.integers(len(alphas), BATCH)
        a = alphas[t].view(-1, 1, 1, 1)
        noise = rng.normal(x) + NOISE_OFFSET * rng.normal(x[:, :, :1, :1])
        noisy = (a.sqrt() * x + (1 - a).sqrt() * noise).to(device)
        sizes = draw_time_ids(BATCH, rng).to(device)
        shown = torch.tensor([bool(text) or rng.python.random() >= ZEROED for text in texts], device=device)
        with progress.autocast(device), sdpa_kernel(SDPBackend.MATH):
            states, pooled = encode(texts, encoders, tokens, device)
            states, pooled = states * shown[:, None, None], pooled * shown[:, None]
            condition = {"text_embeds": pooled, "time_ids": sizes}
            prediction = unet(noisy, t.to(device), states, added_cond_kwargs=condition).sample
        error = (prediction.float() - noise.to(device)).square().mean((1, 2, 3))
        snr = (alphas / (1 - alphas))[t].to(device)
        return (error * snr.clamp(max=MIN_SNR_GAMMA) / snr).mean(), {"mse": error.mean().item()}

    def preview() -> None:
        sheet(assemble(work, modules), (PREVIEW_PROMPTS, PREVIEW_RENDERINGS)).save(work / "base.png")

    progress.train(
        "unet",
        modules,
        loss_of,
        work=work,
        length=length,
        seed=seed,
        lr=1e-3,
        warmup=200,
        preview=preview,
        preview_minutes=10,
    )


def adopt(work: Path, pack: Path) -> None:
    """Write the first checkpoint of the UNet and the text encoders from the exported pack, and copy its tokenizers."""
    for part in TOKENIZERS:
        shutil.copytree(pack / "base" / part, work / part, dirs_exist_ok=True)
    base = StableDiffusionXLPipeline.from_pretrained(pack / "base")
    parts = {name: getattr(base, name).state_dict() for name in ("unet", "text_encoder", "text_encoder_2")}
    progress.adopt("unet", parts, work)


def assemble(work: Path, modules: dict[str, nn.Module]) -> StableDiffusionXLPipeline:
    """Build the SDXL pipeline from the trained modules and the autoencoder, with Euler steps on trailing timesteps."""
    first, second = load_tokenizers(work)
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing", prediction_type="epsilon")
    pipeline = StableDiffusionXLPipeline(
        vae=vae.finished(work),
        tokenizer=first,
        tokenizer_2=second,
        scheduler=scheduler,
        add_watermarker=False,
        **modules,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def snapshot(work: Path) -> StableDiffusionXLPipeline:
    """Build the pipeline with the EMA weights of the latest checkpoint; training may still be running."""
    weights = progress.ema_weights("unet", work)
    if weights is None:
        raise SystemExit("the UNet has no checkpoint: run the unet stage first")
    first, second = build_text_encoders(load_tokenizers(work)[0])
    modules: dict[str, nn.Module] = {"unet": build_unet(), "text_encoder": first, "text_encoder_2": second}
    for name, module in modules.items():
        module.load_state_dict(weights[name])
        module.eval()
    return assemble(work, modules)


def load_exported(pack: Path) -> StableDiffusionXLPipeline:
    """Load PACK/base in float32."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(pack / "base", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def sample_images(
    pipeline: StableDiffusionXLPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    steps: int = 20,
    guidance: float = 6.0,
) -> np.ndarray:
    """Sample an image per prompt and seed, uint8 [N, 128, 128, 3]; steps and guidance are the studio's defaults."""
    drawn = []
    for start in range(0, len(prompts), 16):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + 16]]
        found = pipeline(
            prompts[start : start + 16],
            height=pictures.RESOLUTION,
            width=pictures.RESOLUTION,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        ).images
        drawn.append((found * 255).round().astype(np.uint8))
    return np.concatenate(drawn)


def sheet(pipeline: StableDiffusionXLPipeline, rows: Sequence[Sequence[str]], *, seeds: int = 2) -> Image.Image:
    """Sample a sheet with one column per prompt and `seeds` rows for each of the given rows of prompts."""
    drawn = [sample_images(pipeline, [*row], [seed] * len(row)) for row in rows for seed in range(seeds)]
    return Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in drawn]))
