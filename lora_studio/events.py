"""The events of jobs, one model per kind: the lines of events.jsonl in a job folder.

A line is `{"event": NAME, "time": SECONDS, ...}` with the fields of the model. Fields that have a default may be left
out. docs/events.md is generated from this module by tools/build_event_docs.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

WEIGHT_NORM_STEPS = 25  # between two measurements of the weight norms
Step = Annotated[int, Field(description="optimizer step, counted from 1; 0 is before the first")]
Epoch = Annotated[int, Field(description="epoch, counted from 1")]
FinishedEpoch = Annotated[int | None, Field(description="the epoch that has ended; null within an epoch")]
SecondsLeft = Annotated[float | None, Field(description="estimated seconds left; null if unknown")]
RunFile = Annotated[str, Field(description="file, relative to the job folder")]
Message = Annotated[str, Field(description="the message to show")]
Code = Annotated[str, Field(description="stable code of the message")]
Measured = tuple[float, float | None]  # a value and its standard error
Remedy = Annotated[str, Field(description="what the user can do next")]


class Event(BaseModel):
    """An event of a job. `name` is the value of `event` in events.jsonl; `time` is set when the event is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str]

    time: float = Field(default=0.0, description="when the event was written, in seconds since 1970")

    def record(self) -> dict[str, Any]:
        """Return the event as the JSON object of its line in events.jsonl; fields that were not set are left out."""
        fields = self.model_dump(mode="json", exclude={"time"}, exclude_unset=True)
        return {"event": self.name, "time": self.time} | fields


class WaitingEvent(Event):
    """The job waits for another one that uses the GPU."""

    name = "waiting"

    message: Message


class PhaseEvent(Event):
    """A part of the job has begun or progressed: loading, encoding, generating samples."""

    name = "phase"

    message: Message
    done: int = Field(default=0, description="finished images, captions, files or bytes of the phase")
    total: int | None = Field(default=None, description="the number of them; left out if unknown")
    unit: str = Field(default="", description="what is counted: images, captions or bytes; left out for others")
    seconds_left: SecondsLeft = None


class WarningEvent(Event):
    """The job continues, but its result may not be what the user expects."""

    name = "warning"

    code: Code
    message: Message
    why: str = Field(default="", description="why it matters")


class HintEvent(Event):
    """Advice on the recipe, at the start of a run, or the verdict on the loss after an epoch, each reported once."""

    name = "hint"

    about: str = Field(default="", description="`recipe` for advice on the recipe; left out for verdicts")
    code: Code
    message: Message
    why: str = Field(default="", description="why it matters, and the next step")


class StartEvent(Event):
    """A training run is about to take its first step, or the first one after a resume."""

    name = "start"

    total: int = Field(description="optimizer steps of the whole run")
    steps_per_epoch: int = Field(description="optimizer steps per epoch")
    epochs: int = Field(description="epochs of the whole run")
    images: int = Field(description="training images")
    device: str = Field(description="name of the GPU, or CPU")
    precision: str = Field(description="fp32, fp16 or bf16")
    precision_reason: str = Field(description="why this precision is used")
    prediction_type: str = Field(description="epsilon or v_prediction")
    zero_terminal_snr: bool = Field(description="whether the noise schedule ends at zero SNR")


class BaseLossEvent(Event):
    """The loss of the base, without the LoRA, was measured on some training images with fixed noise.

    `relative_loss` of a step is relative to this curve.
    """

    name = "base_loss"

    loss: float = Field(description="expected loss of a training sample, over the timesteps that the run draws")
    timesteps: list[int] = Field(description="timesteps of the curve, interpolated linearly in log(loss) between them")
    losses: list[float] = Field(description="loss of the base at each of them, with the recipe's loss weights")
    evaluations: int = Field(description="samples that were evaluated for it")


class CaptionsEvent(Event):
    """The augmented captions of the first steps were written to a file, for the user to read."""

    name = "captions"

    file: RunFile
    examples: list[str] = Field(description="the first of these captions")


class ResumeEvent(Event):
    """A training run continues from a resume state. Events after its step were removed from the log."""

    name = "resume"

    step: Step


class EventAtStep(Event):
    """An event at an optimizer step."""

    step: Step


class StepEvent(EventAtStep):
    """An optimizer step was taken."""

    name = "step"

    total: int = Field(description="optimizer steps of the whole run")
    epoch: Epoch
    seconds_left: SecondsLeft = None
    loss: float | None = Field(description="mean training loss of the step's samples")
    relative_loss: float | None = Field(
        default=None,
        description="mean of the samples' losses, each relative to the base's loss at its timestep: 1 means as "
        "good as the base. The figure to smooth, judge and compare; left out if the base's loss is unknown",
    )
    lr: float = Field(description="learning rate of the UNet")
    text_encoder_lr: float = Field(default=0.0, description="learning rate of the text encoders")
    text_encoder_lr2: float | None = Field(
        default=None, description="learning rate of the second text encoder; left out unless it has its own"
    )
    seconds: float | None = Field(default=None, description="duration of the step")
    memory_gib: float | None = Field(
        default=None,
        description="peak memory of tensors on the GPU since the first step, or of the process's RAM on a CPU, in GiB",
    )
    batch_pixels: int | None = Field(
        default=None, description="pixels of the step's largest batch, on each GPU if there are several"
    )
    gradient_norm: float | None = Field(
        default=None, description="norm of the gradient before clipping; null if fp16 had to lower its loss scale"
    )
    scaled_layers: int | None = Field(
        default=None, description="layers that `scale_weight_norms` scaled down after the step; left out if it is off"
    )
    mean_weight_norm: float | None = Field(
        default=None,
        description="mean Frobenius norm of the layers' weight deltas, after that; without `scale_weight_norms` only "
        f"at the first step, every {WEIGHT_NORM_STEPS}th and the last",
    )
    max_weight_norm: float | None = Field(default=None, description="the largest of these norms, at the same steps")


class NanEvent(EventAtStep):
    """An optimizer step was skipped, since its loss or gradient norm was not finite."""

    name = "nan"

    total: int = Field(description="optimizer steps of the whole run")
    epoch: Epoch
    seconds_left: SecondsLeft = None


class EpochEvent(Event):
    """An epoch has ended."""

    name = "epoch"

    epoch: Epoch
    loss: float | None = Field(description="mean training loss of its steps")
    unet_norm: float | None = Field(
        default=None, description="Frobenius norm of the LoRA's weight delta in the UNet; left out if not trained"
    )
    te1_norm: float | None = Field(default=None, description="the same in the first text encoder")
    te2_norm: float | None = Field(default=None, description="the same in the second text encoder")


class ImageLossesEvent(Event):
    """The training loss by image was written to a file; the images with the highest losses, if any has enough samples.

    Losses are relative to the base's at the same timesteps, and compared with those of all images, over an image's last
    10 samples or so.
    """

    name = "image_losses"

    epoch: Epoch
    file: RunFile
    worst: list[str] = Field(description="paths of up to 5 images that are learned worst")
    ratios: list[float] = Field(description="loss of each of them, relative to the mean")


class TimestepsEvent(Event):
    """The training loss of an epoch by timestep."""

    name = "timesteps"

    epoch: Epoch
    bins: list[tuple[int, int]] = Field(description="bins of timesteps: first, end (exclusive)")
    loss: list[float | None] = Field(description="mean loss of each bin; null if it has no sample")
    count: list[int] = Field(description="samples in each bin")


class ValidationEvent(EventAtStep):
    """The fixed-noise loss was computed: on fixed images, with fixed noise and timesteps.

    Two of a run differ by the LoRA alone.
    """

    name = "validation"

    epoch: int = Field(description="finished epochs; 0 before the first step, and within the first epoch")
    loss: float | None = Field(description="mean fixed-noise loss; null if not finite")
    split: Literal["validation", "training"] = Field(
        default="validation",
        description="the images: `validation` for those of the validation split, `training` for training images, "
        "where there is no such split",
    )
    base_loss: float | None = Field(
        default=None, description="the same of the base, without the LoRA; left out in runs of earlier versions"
    )


class CheckpointEvent(EventAtStep):
    """A LoRA was saved during the run."""

    name = "checkpoint"

    epoch: FinishedEpoch
    path: RunFile


class SampleEvent(EventAtStep):
    """A sample image was generated during the run."""

    name = "sample"

    epoch: FinishedEpoch
    index: int = Field(description="number of the prompt, counted from 0")
    prompt: str = Field(description="the prompt, with the trigger word filled in and without its options")
    negative_prompt: str = Field(default="", description="the negative prompt")
    seed: int = Field(description="seed of the image")
    width: int | None = Field(default=None, description="width in px")
    height: int | None = Field(default=None, description="height in px")
    steps: int | None = Field(default=None, description="sampling steps")
    guidance: float | None = Field(default=None, description="classifier-free guidance (CFG) scale")
    sampler: str | None = Field(default=None, description="sampler, by kohya's name")
    path: RunFile


class SampleMeasuresEvent(EventAtStep):
    """The samples of a step were compared with each other and with the training images.

    `[value, error]` is a mean over the samples with its standard error (jackknife), null for a single sample.
    docs/measures.md defines the measures.
    """

    name = "sample_measures"

    epoch: FinishedEpoch
    features: str = Field(
        description="model whose features are compared; `thumbnails`: pixels of small copies, if no model is known"
    )
    images: int = Field(description="training images that the samples were compared with")
    indices: list[int] = Field(description="number of the prompt of each sample, counted from 0")
    nearest: list[str] = Field(description="path of the training image that is nearest to each sample")
    nearest_ratio: list[float] = Field(
        description="distance to it over the median distance of a training image to its own nearest: 0 is a copy"
    )
    variety: Measured | None = Field(default=None, description="mean distance between the samples")
    training_variety: float | None = Field(default=None, description="mean distance between the training images")
    closeness: Measured | None = Field(
        default=None, description="closeness to the training images: 1 as close as they are to each other"
    )
    validation_closeness: Measured | None = Field(
        default=None, description="closeness to the images of the validation split"
    )
    adherence: Measured | None = Field(
        default=None, description="mean confidence of the tagger in the tags of the prompts; left out if it has none"
    )
    contrast: Measured = Field(description="standard deviation of the luma")
    saturation: Measured = Field(description="largest minus smallest colour channel")
    clipped: Measured = Field(description="share of nearly black and nearly white pixels")
    training_contrast: float = Field(description="contrast of the training images")
    training_saturation: float = Field(description="saturation of the training images")
    training_clipped: float = Field(description="clipped share of the training images")


class SavedEvent(Event):
    """The final LoRA of a run was saved."""

    name = "saved"

    path: RunFile


class ImageEvent(Event):
    """A tagging job has finished an image."""

    path: str = Field(description="the image")
    done: int = Field(description="finished images")
    total: int = Field(description="images of the dataset")
    seconds_left: SecondsLeft = None


class TaggedEvent(ImageEvent):
    """A caption was written."""

    name = "tagged"

    caption: str = Field(description="the caption")


class SkippedEvent(ImageEvent):
    """An image keeps its caption."""

    name = "skipped"


class ImageFailedEvent(ImageEvent):
    """An image could not be tagged; the job continues with the others."""

    name = "image_failed"

    message: Message


class CellEvent(Event):
    """An image of a sweep was generated."""

    name = "cell"

    done: int = Field(description="finished images")
    total: int = Field(description="images of the sweep")
    seconds_left: SecondsLeft = None
    path: RunFile
    prompt: str = Field(description="the prompt, with the trigger word filled in")
    strength: float = Field(description="strength of the LoRA; 0 is the base alone")
    seed: int = Field(description="seed of the image")
    lora: str | None = Field(description="file of the LoRA; null for the base alone")
    base: str = Field(description="the base model")


class DownloadEvent(Event):
    """A part of a base model was downloaded."""

    name = "download"

    done: int = Field(description="bytes of the weights that are on the disk")
    total: int = Field(description="bytes of all weights")
    seconds_left: SecondsLeft = None
    message: Message


class DoneEvent(Event):
    """The job is complete. The last event of a job is this one, `stopped` or `failed`."""

    name = "done"

    message: Message
    remedy: Remedy = ""


class StoppedEvent(Event):
    """The job was stopped by the user, or by itself; its results so far and its state are saved."""

    name = "stopped"

    message: Message
    remedy: Remedy = ""
    code: str = Field(
        default="", description="why it stopped by itself: `plateau`, `rise` or `break`; left out for the user"
    )
    path: str | None = Field(
        default=None,
        description="the checkpoint that is the result of a run that stopped by itself, relative to the job folder; "
        "null if there is none",
    )


class FailedEvent(Event):
    """The job ended with an error."""

    name = "failed"

    message: Message
    remedy: Remedy = ""
    code: str = Field(default="error", description="stable code of the error")


EVENTS: dict[str, type[Event]] = {
    model.name: model
    for model in (
        WaitingEvent,
        PhaseEvent,
        WarningEvent,
        HintEvent,
        StartEvent,
        BaseLossEvent,
        CaptionsEvent,
        ResumeEvent,
        StepEvent,
        NanEvent,
        EpochEvent,
        ImageLossesEvent,
        TimestepsEvent,
        ValidationEvent,
        CheckpointEvent,
        SampleEvent,
        SampleMeasuresEvent,
        SavedEvent,
        TaggedEvent,
        SkippedEvent,
        ImageFailedEvent,
        CellEvent,
        DownloadEvent,
        DoneEvent,
        StoppedEvent,
        FailedEvent,
    )
}
# Events of the process rather than of the training: a resume keeps them in the log, even if it repeats steps.
PROCESS_EVENTS = (WaitingEvent, PhaseEvent, WarningEvent, StartEvent, ResumeEvent, StoppedEvent, FailedEvent)
Report = Callable[[Event], None]  # how a job reports its events


def parse_event(line: str | bytes) -> Event | None:
    """Return the event of a line of events.jsonl, or None if its name is unknown, as in logs of later versions.

    Unknown fields are ignored. Raises ValueError if the line is damaged.
    """
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise ValueError(f"{line!r} is not an event.")
    model = EVENTS.get(record["event"])
    if model is None:
        return None
    return model.model_validate({name: value for name, value in record.items() if name in model.model_fields})
