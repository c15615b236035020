"""Image-text models with small random weights, in the files that real ones have: Florence-2, Qwen2.5-VL and LLaVA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

WORDS = ["a", "picture", "of", "the", "red", "green", "blue", "cat", "house", "with", "and", "describe", "this", ":"]
SIZE = 28  # px
LIST_TEMPLATE = (  # as in Qwen-VL: the content is a list of parts
    "{% for message in messages %}{{ message.role }} : "
    "{% for part in message.content %}{% if part.type == 'image' %}IMAGE {% else %}{{ part.text }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)
TEXT_TEMPLATE = (  # as in Llama: the content is a text, here without the place of the image
    "{% for message in messages %}{{ message.role }} : {{ message.content | trim }} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def _tokens(*special: str, names: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a word per token; `names` are the special tokens that have an attribute of their own."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", *special, *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=names or list(special),
        model_max_length=512,
    )


def _save(model: Any, processor: Any, folder: Path, **options: Any) -> Path:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(processor.tokenizer, name))
    model.save_pretrained(folder, **options)
    processor.save_pretrained(folder)
    return folder


def save_tiny_llava(folder: Path, template: str = TEXT_TEMPLATE) -> Path:
    """Save a LLaVA, which JoyCaption is, with a chat template."""
    tokens = _tokens("<image>")
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIZE,
            patch_size=14,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
        ),
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    images = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor = LlavaProcessor(
        images,
        tokens,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template.replace("IMAGE", "<image>"),
        num_additional_image_tokens=1,
    )
    return _save(LlavaForConditionalGeneration(config), processor, folder)


def save_tiny_qwen(folder: Path) -> Path:
    """Save a Qwen2.5-VL with its weights in several files."""
    special = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokens = _tokens(*special)
    torch.manual_seed(0)
    start, end, image, video = (tokens.convert_tokens_to_ids(token) for token in special)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokens),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [0],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    place = "<|vision_start|> <|image_pad|> <|vision_end|>"
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        tokens,
        Qwen2VLVideoProcessor(),
        chat_template=LIST_TEMPLATE.replace("IMAGE", place),
    )
    return _save(Qwen2_5_VLForConditionalGeneration(config), processor, folder, max_shard_size="40KB")


def save_tiny_florence(folder: Path) -> Path:
    """Save a Florence-2, which has an encoder and no chat template."""
    tokens = _tokens("<image>", names={"image_token": "<image>"})
    torch.manual_seed(0)
    config = Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokens),
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
            "max_position_embeddings": 256,
            "decoder_start_token_id": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={
            "depths": [1, 1, 1, 1],
            "embed_dim": [8, 8, 8, 8],
            "num_heads": [2, 2, 2, 2],
            "num_groups": [2, 2, 2, 2],
            "window_size": 4,
            "projection_dim": 16,
        },
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
    )
    images = CLIPImageProcessor(
        size={"height": 64, "width": 64}, crop_size={"height": 64, "width": 64}, do_center_crop=False
    )
    images.image_seq_length = 5
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.decoder_start_token_id = 2
    return _save(model, Florence2Processor(images, tokens), folder)
