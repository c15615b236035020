"""Settings of experiment trackers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_studio.settings.choices import Tracker
from lora_studio.settings.declare import Group, Settings, setting


class TrackingSettings(Settings):
    """Where a run logs its losses and norms, besides its own folder."""

    log_with: Tracker = setting(
        Tracker.NONE,
        label="Experiment tracker",
        group=Group.LOGGING,
        why="Logs losses, learning rates, norms and samples to TensorBoard (in the run's folder, under logs), wandb or "
        "trackio, too. Its package must be installed; wandb sends them, and the recipe, to its server.",
    )
    log_tracker_name: Annotated[str, Field(pattern=r"^[\w.\-]*$")] = setting(
        "",
        label="Tracker project",
        group=Group.LOGGING,
        why="Name of the project in the tracker; empty is lora-studio.",
        max_length=100,
        only_with="log_with=tensorboard|wandb|trackio",
    )
