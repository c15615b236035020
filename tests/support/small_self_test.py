"""A size of the self-test's models that a CPU computes in milliseconds."""

from __future__ import annotations

from lora_studio.training.speed.self_test import SelfTestSize

SMALL = SelfTestSize(
    unet={
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1),
        "attention_head_dim": (1, 2),
        "layers_per_block": 1,
        "cross_attention_dim": 48,
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 6 * 16 + 24,
    },
    vae={"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    side=64,
    width=64,
)
