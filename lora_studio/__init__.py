"""LoRA Studio: curate, tag, plan, train and test SDXL LoRAs.

>>> import lora_studio
>>> report = lora_studio.scan("my-images")                              # doctest: +SKIP
>>> lora_studio.tag("my-images", tagger="wd14", trigger_word="saria_zelda")   # doctest: +SKIP
>>> run = lora_studio.train("my-images", base="SDXL 1.0", name="saria")       # doctest: +SKIP
>>> lora_studio.sweep([run.lora], bases=["SDXL 1.0"], prompts=["saria_zelda, smiling"])   # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_studio.versions import VERSION as __version__

__all__ = [
    "__version__",
    "compare_runs",
    "continue_training",
    "crops",
    "curate",
    "doctor",
    "download_model",
    "edit_captions",
    "export_settings",
    "import_settings",
    "lint_captions",
    "list_models",
    "make",
    "measure",
    "plan",
    "plan_caption_edit",
    "queue_variants",
    "release",
    "request_samples",
    "request_save",
    "resume",
    "review_captions",
    "runs",
    "scan",
    "set_caption_extension",
    "set_focus",
    "summarize_captions",
    "sweep",
    "tag",
    "train",
    "undo_caption_edit",
    "upload_release",
    "wrap_images",
]

if TYPE_CHECKING:
    from lora_studio.api import (
        compare_runs,
        continue_training,
        crops,
        curate,
        doctor,
        download_model,
        edit_captions,
        export_settings,
        import_settings,
        lint_captions,
        list_models,
        measure,
        plan,
        plan_caption_edit,
        queue_variants,
        release,
        request_samples,
        request_save,
        resume,
        review_captions,
        runs,
        scan,
        set_caption_extension,
        set_focus,
        summarize_captions,
        sweep,
        tag,
        train,
        undo_caption_edit,
        upload_release,
        wrap_images,
    )
    from lora_studio.workflow.make import make


def __getattr__(name: str) -> Any:
    if name == "make":
        from lora_studio.workflow.make import make

        return make
    if name in __all__:
        from lora_studio import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
