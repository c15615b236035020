"""Check that the installed peft can inject a LoRA into a model of the installed transformers."""

from __future__ import annotations

import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import CLIPTextConfig, CLIPTextModel

from lora_studio.versions import incompatible_libraries_error


def check_peft_compatibility() -> None:
    """Inject a LoRA into a one-layer text encoder and run a backward pass.

    Version numbers alone do not show whether peft and transformers work together. Raises InputError, with the
    installed versions, if they do not.
    """
    config = CLIPTextConfig(
        vocab_size=8,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=6,
        eos_token_id=7,
        pad_token_id=7,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            model = CLIPTextModel(config)
            inject_adapter_in_model(LoraConfig(r=1, target_modules=["q_proj", "fc1"]), model)
        model(torch.tensor([[1, 7]])).last_hidden_state.sum().backward()
        found = [name for name, weight in model.named_parameters() if "lora_B" in name and weight.grad is not None]
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise incompatible_libraries_error(f"peft cannot inject a LoRA into a text encoder ({error})") from error
    if len(found) != 2:
        raise incompatible_libraries_error(f"peft trains {len(found)} of 2 layers of a text encoder")
