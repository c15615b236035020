"""The studio's stages as Python functions; the command line and the tabs call the same ones.

`scan`, `curate`, `plan` and the functions that edit captions return directly. `tag`, `train` and `sweep` run in this
process, in a job folder like those that the browser starts, and wait until the GPU is free.
"""

from __future__ import annotations

from lora_studio.api.captions import (
    edit_captions,
    lint_captions,
    plan_caption_edit,
    review_captions,
    set_caption_extension,
    summarize_captions,
    trigger_word_of,
    undo_caption_edit,
)
from lora_studio.api.jobs import resume, run_job
from lora_studio.api.stages import compare_runs, download_model, list_models, release, runs, sweep, tag
from lora_studio.api.training import (
    continue_training,
    enqueue_jobs,
    measure,
    plan_on_this_machine,
    queue_variants,
    request_samples,
    request_save,
    train,
)
from lora_studio.dataset.crops import crops, set_focus
from lora_studio.dataset.curate import curate
from lora_studio.dataset.images.sets import wrap_images
from lora_studio.dataset.scan import scan
from lora_studio.diagnosis import doctor
from lora_studio.interop.files import import_settings
from lora_studio.interop.write import export_settings
from lora_studio.planning.plan import plan
from lora_studio.sharing.upload import upload_release

__all__ = [
    "compare_runs",
    "continue_training",
    "crops",
    "curate",
    "doctor",
    "download_model",
    "edit_captions",
    "enqueue_jobs",
    "export_settings",
    "import_settings",
    "lint_captions",
    "list_models",
    "measure",
    "plan",
    "plan_caption_edit",
    "plan_on_this_machine",
    "queue_variants",
    "release",
    "request_samples",
    "request_save",
    "resume",
    "review_captions",
    "run_job",
    "runs",
    "scan",
    "set_caption_extension",
    "set_focus",
    "summarize_captions",
    "sweep",
    "tag",
    "train",
    "trigger_word_of",
    "undo_caption_edit",
    "upload_release",
    "wrap_images",
]
