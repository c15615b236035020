"""The tensors of a batch, and moving them to a device."""

from __future__ import annotations

import torch

from lora_studio.training.data.batch import BatchTensors


def batch(**more: torch.Tensor) -> BatchTensors:
    return BatchTensors(
        noisy=torch.randn(2, 4, 8, 8, dtype=torch.bfloat16),
        target=torch.randn(2, 4, 8, 8),
        t=torch.tensor([3, 999]),
        time_ids=torch.zeros(2, 6, dtype=torch.long),
        weights=torch.ones(2),
        sample_count=torch.tensor(2.0),
        **more,
    )


def test_only_the_tensors_that_are_set_are_listed() -> None:
    assert batch().tensors.keys() == {"noisy", "target", "t", "time_ids", "weights", "sample_count"}
    masks = torch.ones(2, 1, 8, 8)
    assert batch(masks=masks).tensors["masks"] is masks


def test_its_length_is_the_number_of_samples() -> None:
    assert len(batch()) == 2


def test_a_batch_moves_to_a_device_with_its_shapes_and_types() -> None:
    source = batch(tokens=torch.zeros(2, 2, 1, 77, dtype=torch.long))
    moved = source.to(torch.device("meta"))
    assert moved.hidden is None
    assert {tensor.device.type for tensor in moved.tensors.values()} == {"meta"}
    assert source.noisy.device.type == "cpu"
    for name, tensor in source.tensors.items():
        assert (moved.tensors[name].shape, moved.tensors[name].dtype) == (tensor.shape, tensor.dtype)
