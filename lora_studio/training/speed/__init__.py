"""Faster or smaller training steps: attention, activation checkpointing, CUDA graphs."""
