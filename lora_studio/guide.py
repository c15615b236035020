"""The guide as data: DuskFall's opinions on LoRA training, each with its reason, once.

All recommendations of the studio are declared here and used from here: as defaults of settings, as checks in planning,
as hints at fields of forms, and in the verdicts on runs. They are advice: nothing in this module forbids anything.

Source: "Opinionated Guide to All LoRA Training (2025 Update)" by DuskFall (Ktiseos-Nyx),
https://civitai.com/articles/1716. Wording and corrections are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

SOURCE = "https://civitai.com/articles/1716/opinionated-guide-to-all-lora-training-2025-update"
DISCLAIMER = "Opinions and experience, not law: a starting point to experiment from."


@dataclass(frozen=True)
class Advice:
    """The guide's advice on one setting: its value, the sensible range, and why.

    `low` and `high` bound the range (inclusive, in the setting's own unit); None leaves that side open.
    """

    value: Any
    why: str
    low: float | None = None
    high: float | None = None


RECIPE: Mapping[str, Advice] = MappingProxyType(
    {
        "unet_lr": Advice(
            5e-4,
            "Strong enough to learn well; lower it if the loss is unstable, raise it if nothing happens.",
            low=5e-5,
            high=2e-3,
        ),
        "text_encoder_lr": Advice(
            1e-4, "A fifth of the UNet's rate, so that the trigger word does not contaminate other prompts.", high=5e-4
        ),
        "network_dim": Advice(
            32, "More nuance than the traditional 8 to 16; go lower for simple concepts.", low=8, high=64
        ),
        "network_alpha": Advice(16, "Half of the dimension: it scales the update by alpha / dim."),
        "optimizer": Advice("Adafactor", "Memory efficient and stable."),
        "noise_offset": Advice(
            0.05, "Deeper contrast and more varied lighting; the guide uses 0.03 to 0.1.", low=0.03, high=0.1
        ),
        "clip_skip": Advice(
            2,
            "SDXL was made with the second-to-last layer (2); 1 is rarely what a base expects.",
            low=1,
            high=2,
        ),
        "resolution": Advice(1024, "The sweet spot of SDXL; 768 works well for most, 512 is for tests."),
        "enable_bucket": Advice(
            True, "Images of mixed shapes keep their aspect ratio instead of being cropped square."
        ),
        "batch_size": Advice(2, "2 to 4 as memory allows; 1 if you run out of VRAM.", low=1, high=4),
        "epochs": Advice(10, "10 to 15 for 10 to 50 images, 5 to 8 up to 300, 3 to 5 above.", low=3, high=15),
        "mixed_precision": Advice("auto", "bf16 or fp16 halves the memory; bf16 where the GPU has it."),
        "gradient_checkpointing": Advice(
            "auto",
            "Recomputes activations to save memory; the guide calls it essential below 12 GB. auto recomputes as many "
            "blocks as the GPU needs, off none, on all.",
            high=12,
        ),
        "sample_negative_prompt": Advice(
            "auto",
            "auto takes the base model's own words for flaws, and nothing for a base outside the catalogue. Words "
            "about content or style are left out: they would hide what the LoRA learns. Empty: no negative prompt.",
        ),
        "tagger_threshold": Advice(0.35, "0.35 to 0.40 gives balanced tags.", low=0.35, high=0.40),
        "character_threshold": Advice(0.85, "A wrong character's name does more harm than a missing one."),
        "strengths": Advice(
            (0.0, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2),
            "0.7 to 1.2 is where a LoRA is used; 0 shows what the base draws without it.",
        ),
        "training_hours": Advice(
            3.0, "One to three hours at most while you test: then you can try again.", low=1, high=3
        ),
    }
)


@dataclass(frozen=True)
class Tier:
    """Datasets of `low` to `high` images (inclusive; None: no limit), with ranges of batch size and epochs."""

    name: Literal["small", "medium", "large"]
    low: int
    high: int | None
    batch_size: tuple[int, int]
    epochs: tuple[int, int]
    good_for: str
    focus: str

    def describe(self) -> str:
        """Return the range as text, like "10 to 50 images"."""
        return f"{self.low} to {self.high} images" if self.high else f"more than {self.low - 1} images"


TIERS = (
    Tier(
        "small", 10, 50, (1, 2), (10, 15), "characters and single concepts", "Curate for quality and tag consistently."
    ),
    Tier("medium", 51, 300, (2, 4), (5, 8), "styles and broader concepts", "Seek variety within consistency."),
    Tier(
        "large",
        301,
        None,
        (4, 8),
        (3, 5),
        "complex styles and several concepts",
        "Guard against overfitting: keep a few images out of training to compare with.",
    ),
)
MIN_IMAGES = Advice(
    10,
    "Even ten good images can be enough if they are above 512 px, similar in size, varied in pose and well composed.",
)
MIN_IMAGES_FOR_VALIDATION = 30  # below, a validation split costs more than it is worth
VALIDATION_SHARE = 0.1  # of a large set
MIN_SIDE = Advice(512, "The guide wants images above 512 px, ideally 1024: enlarging teaches blur.")


def tier_for(images: int) -> Tier:
    """Return the tier for a number of images; fewer than ten count as small."""
    return next(tier for tier in TIERS if tier.high is None or images <= tier.high)


@dataclass(frozen=True)
class KindAdvice:
    """What differs between a character, a style and a concept.

    `why` is the reason of the dim. `steps` is the length of a run at the guide's rates and batch size, 2. `prompts` are
    for samples; {trigger} is replaced by the trigger word.
    """

    network_dim: int
    network_alpha: float
    steps: int
    why: str
    prompts: tuple[str, ...]
    tagging: str
    base: str


KINDS: Mapping[str, KindAdvice] = MappingProxyType(
    {
        "character": KindAdvice(
            32,
            16,
            950,
            "A character needs detail: the guide's 32 / 16, and every image is shown often.",
            ("{trigger}, portrait, looking at viewer", "{trigger}, full body, walking in a city street"),
            "Tag what may change (clothes, pose, place), not what never does: the trigger word should learn that.",
            "Take a base that already draws your character's style well.",
        ),
        "style": KindAdvice(
            32,
            16,
            625,
            "A style is made of many details that all images share: the guide's 32 / 16 hold them.",
            ("{trigger}, a house by a lake", "{trigger}, portrait of an old man", "{trigger}, a cat on a chair"),
            "Tag everything visible and leave out words for the style: the trigger word should learn it.",
            "Take a base whose look suits the style.",
        ),
        "concept": KindAdvice(
            16,
            8,
            750,
            "The guide lowers the dimension for simple concepts: 16 / 8 learns one thing in half the file.",
            ("{trigger}", "{trigger}, outdoors, wide shot"),
            "Tag who and what surrounds the concept and leave the concept itself to the trigger word.",
            "Take a base that draws what surrounds the concept.",
        ),
    }
)


@dataclass(frozen=True)
class OptimizerAdvice:
    """Advice on an optimizer; above `avoid_above_images` images the guide advises against it.

    `learning_rate_free`: rates are factors around 1 on the rate that it finds; `single_rate`: all must be equal.
    `schedule_free`: it needs no schedule and saves averaged weights. `rate_factor` is the usual rate as a multiple of
    AdamW's. `arguments` are further ones (KEY=VALUE) that are known to work, each with its effect.
    """

    why: str
    avoid_above_images: int | None = None
    learning_rate_free: bool = False
    single_rate: bool = False
    schedule_free: bool = False
    rate_factor: float = 1.0
    arguments: tuple[tuple[str, str], ...] = ()


_WEIGHT_DECAY = ("weight_decay=0.1", "what most recipes for AdamW in 8 bits set")
_D_COEF = ("d_coef=2", "twice the rate that it finds; 0.5 is gentler")

OPTIMIZERS: Mapping[str, OptimizerAdvice] = MappingProxyType(
    {
        "Adafactor": OptimizerAdvice("Memory efficient and stable: the guide's first choice."),
        "AdamW8bit": OptimizerAdvice(
            "AdamW with its state in 8 bits: well known, at a quarter of the memory.",
            arguments=(_WEIGHT_DECAY, ("betas=0.9,0.99", "forgets old gradients sooner, for short runs")),
        ),
        "Prodigy": OptimizerAdvice(
            "Finds its own rate: experimental but promising. Both rates must be 1.",
            learning_rate_free=True,
            single_rate=True,
            arguments=(_D_COEF, ("slice_p=11", "half of its memory, for a rate from every eleventh weight")),
        ),
        "AdamW": OptimizerAdvice(
            "The full-size original; the guide avoids it on large datasets.", avoid_above_images=300
        ),
        "CAME": OptimizerAdvice(
            "Adafactor with momentum and more confidence: half of AdamW's memory.",
            arguments=(("weight_decay=0.04", "what recipes for CAME set"),),
        ),
        "Lion8bit": OptimizerAdvice(
            "Steps of equal size in every weight, an eighth of AdamW's memory; it needs a fifth of its rates.",
            rate_factor=0.2,
        ),
        "PagedAdamW8bit": OptimizerAdvice(
            "AdamW8bit whose state moves to main memory when GPU memory runs out.", arguments=(_WEIGHT_DECAY,)
        ),
        "AdamWScheduleFree": OptimizerAdvice(
            "AdamW that averages its weights instead of lowering the rate: set the schedule to constant.",
            schedule_free=True,
        ),
        "ProdigyPlusScheduleFree": OptimizerAdvice(
            "Prodigy with a rate for each model and no schedule: rates of 1, constant, Max gradient norm 0.",
            learning_rate_free=True,
            schedule_free=True,
            arguments=(_D_COEF,),
        ),
        "DAdaptAdam": OptimizerAdvice(
            "Finds its own rate, as Prodigy's predecessor, and more slowly. Both rates must be 1.",
            learning_rate_free=True,
            single_rate=True,
            arguments=(("growth_rate=1.02", "its rate grows by at most 2% per step"),),
        ),
        "Lion": OptimizerAdvice(
            "Lion8bit with its state in 32 bits: half of AdamW's memory, at a fifth of its rates.", rate_factor=0.2
        ),
    }
)


@dataclass(frozen=True)
class MemorySaving:
    """One way to save memory: set `setting` to `value`. `guide`: the guide recommends it."""

    code: str
    setting: str
    value: Any
    advice: str
    why: str
    guide: bool = True


MEMORY_SAVINGS = (
    MemorySaving(
        "checkpointing",
        "gradient_checkpointing",
        "auto",
        "Set gradient checkpointing to auto",
        "It trades speed for memory and does not change the result.",
    ),
    MemorySaving("batch", "batch_size", 1, "Lower the batch size to 1", "Activations shrink with the batch."),
    MemorySaving(
        "optimizer",
        "optimizer",
        "AdamW8bit",
        "Use AdamW8bit",
        "Its state takes a quarter of AdamW's and an eighth of Prodigy's memory.",
    ),
    MemorySaving(
        "text_encoders",
        "text_encoder_lr",
        0.0,
        "Set the text encoder rate to 0",
        "With frozen text encoders captions are encoded once and the encoders leave the GPU: about 1.9 GiB less.",
        guide=False,
    ),
    MemorySaving(
        "base_int8",
        "base_precision",
        "int8",
        "Set the base weights to int8",
        "The frozen UNet shrinks by 2 GiB with hardly a difference in quality; steps take longer.",
        guide=False,
    ),
    MemorySaving(
        "base_nf4",
        "base_precision",
        "nf4",
        "Set the base weights to nf4",
        "The frozen UNet shrinks by another GiB, with a small difference in quality.",
        guide=False,
    ),
    MemorySaving(
        "resolution_768", "resolution", 768, "Lower the resolution to 768", "The last resort; 768 works for most."
    ),
    MemorySaving(
        "resolution_512", "resolution", 512, "Lower the resolution to 512", "For tests, or where memory is short."
    ),
)


@dataclass(frozen=True)
class GuideRule:
    """A rule of thumb with its reason; `code` is the code of its warning, or the setting that it is about."""

    code: str
    rule: str
    why: str


TRIGGER_RULES = (
    GuideRule(
        "trigger_unique",
        "Make it unique, like saria_zelda rather than saria.",
        "A word that the base knows brings along what the base thinks of it.",
    ),
    GuideRule("trigger_memorable", "Keep it memorable: 4 to 24 characters.", "You will type it a lot."),
    GuideRule("trigger_style", "Avoid existing style terms.", "The new meaning would fight with the old one."),
    GuideRule("trigger_consistent", "Use the same word in every caption.", "Only then does it learn what they share."),
    GuideRule(
        "trigger_characters",
        "Use letters, digits and underscores only.",
        "Spaces and commas split it, and brackets, colons and angle brackets have a meaning in prompts.",
    ),
)
_STYLE_WORDS = """
3d 3d_render aesthetic anime art artwork cartoon chibi comic cubism cyberpunk digital digital_art drawing
fantasy flat_color gothic illustration impressionism ink line_art lineart lowpoly manga masterpiece minimalist
monochrome oil_painting painting pastel photo photograph photorealistic pixel_art pop_art portrait realistic
render retro sketch steampunk style surreal ukiyo-e vintage watercolor watercolour
"""
STYLE_TERMS = frozenset(_STYLE_WORDS.split())
QUALITY_TAGS = frozenset(
    {"masterpiece", "best quality", "high quality", "absurdres", "highres", "lowres", "worst quality", "solo", "rating"}
    | {"newest", "very aesthetic", "source anime", "rating safe", "rating explicit"}
)

EXPERIMENTS = (
    GuideRule("unet_lr", "Learning rate", "The most impactful of all."),
    GuideRule("epochs", "Training length", "Stop before it overfits; an earlier checkpoint may be the better one."),
    GuideRule("network_dim", "Network size", "Bigger is not always better."),
    GuideRule("optimizer", "Optimizer", "Another approach to the same data."),
)
ONE_CHANGE = "Change one thing at a time, and note what worked and what did not."


@dataclass(frozen=True)
class WarningSign:
    """A warning sign with its likely cause, the remedy, and the settings that it is about."""

    sign: str
    cause: str
    remedy: str
    settings: tuple[str, ...]


WARNING_SIGNS: Mapping[str, WarningSign] = MappingProxyType(
    {
        "nan": WarningSign(
            "The loss became NaN",
            "The learning rate is too high.",
            "Resume from the last good checkpoint with a lower learning rate.",
            ("unet_lr", "text_encoder_lr"),
        ),
        "no_improvement": WarningSign(
            "The loss does not fall",
            "The learning rate is too low, or the images and captions do not agree.",
            "Check the captions; if they are right, raise the UNet's learning rate.",
            ("unet_lr",),
        ),
        "rising": WarningSign(
            "The loss is rising",
            "The learning rate is too high, or the run has been training for too long.",
            "Stop, and compare the earlier checkpoints.",
            ("unet_lr", "epochs"),
        ),
        "broken": WarningSign(
            "The loss jumped and stayed up",
            "A step was too large: the LoRA broke, though its loss is finite. The learning rate is too high.",
            "Stop: more steps do not repair it. Start again with a lower learning rate.",
            ("unet_lr", "text_encoder_lr"),
        ),
        "plateau": WarningSign(
            "The loss has levelled off",
            "These settings have learned what they can from these images.",
            "You could stop here: it is better to undertrain than to overtrain.",
            ("epochs",),
        ),
        "overfit": WarningSign(
            "Always the same pose or picture",
            "The run has been training for too long on too few images.",
            "Use an earlier checkpoint or fewer epochs, or add more varied images.",
            ("epochs", "repeats", "network_dim"),
        ),
        "memorising": WarningSign(
            "The LoRA is memorising its training images",
            "What it learns for other images makes less of a difference: the learning rate is too high, or the run has "
            "been training for too long.",
            "Compare earlier checkpoints with new prompts; a validation split shows where it began.",
            ("unet_lr", "epochs", "validation_split"),
        ),
        "washed_out": WarningSign(
            "Washed-out colours",
            "The prediction type does not match the base model, or the LoRA is overtrained.",
            "Leave the prediction type on auto; if it is, use an earlier checkpoint.",
            ("prediction_type", "epochs"),
        ),
        "copies": WarningSign(
            "Samples copy a training image",
            "The LoRA is memorising single images: it has been training for too long on too few, or on duplicates.",
            "Set duplicates of that image aside and use an earlier checkpoint or fewer epochs.",
            ("epochs", "repeats"),
        ),
        "burnt": WarningSign(
            "Burnt colours",
            "The learning rate is too high, or the LoRA is overtrained.",
            "Use an earlier checkpoint; if all are burnt, lower the learning rate.",
            ("unet_lr", "epochs"),
        ),
    }
)

SUCCESS_INDICATORS = (
    GuideRule("steady_loss", "The loss falls steadily.", "A healthy learning curve."),
    GuideRule("variety", "Pictures vary from seed to seed.", "It learned the subject, not single images."),
    GuideRule("trigger_works", "The trigger word works reliably.", "Compare the same seed with and without it."),
    GuideRule(
        "style_holds",
        "The look stays what you intended.",
        "Even in prompts with subjects that the dataset does not have.",
    ),
)


# What a healthy curve of a run looks like: practice of LoRA training, added to the guide.
CHART_READING: Mapping[str, str] = MappingProxyType(
    {
        "gradient_norm": "Healthy: noisy around one level. A rise to ten times that level that stays is a sign of too "
        "high a learning rate.",
        "weight_norm": "Healthy: rises fast, then ever slower. A climb that does not slow down, or one layer far above "
        "the mean, is a sign of overtraining.",
    }
)

# The guide says which strengths to try; how to read the grid is added here in its spirit.
GRID_READING = (
    GuideRule(
        "lowest",
        "Take the lowest strength at which every row shows what you wanted.",
        "More strength than needed costs variety and mixes badly with other LoRAs.",
    ),
    GuideRule(
        "too_weak",
        "If you need more than 1.2, it has learned too little.",
        "Train longer or at a higher learning rate, or check the captions.",
    ),
    GuideRule(
        "too_strong",
        "If images are stiff, burnt or always the same at 0.7 already, it has learned too much.",
        "Use an earlier checkpoint or fewer epochs.",
    ),
    GuideRule(
        "leaks",
        "A row without the trigger word should stay close to strength 0.",
        "If it does not, the LoRA changes prompts that do not use it: lower the text encoder's learning rate.",
    ),
)


@dataclass(frozen=True)
class WorkflowStep:
    """A step of the workflow: the question that it answers, what to do, and a line of the guide's philosophy."""

    name: str
    question: str
    todo: tuple[str, ...]
    thought: str


WORKFLOW: Mapping[str, WorkflowStep] = MappingProxyType(
    {
        "plan": WorkflowStep(
            "Plan",
            "What should I do?",
            (
                "Say how many images you have and what the LoRA should learn.",
                "Generate a few images with the base first: it should already come close to what you want.",
                "Check the memory, and aim for one to three hours at most while you test.",
            ),
            "Start conservative: proven settings first, then one change at a time.",
        ),
        "dataset": WorkflowStep(
            "Dataset",
            "Is it good?",
            (
                "Import your best images and set duplicates aside: similar poses waste steps.",
                "Tag with WD14 for anime, BLIP for realistic pictures, at a threshold of 0.35 to 0.40.",
                "Put your trigger word first in every caption.",
                "Read every caption yourself.",
            ),
            "Think like a curator: twenty very good images beat a hundred mediocre ones.",
        ),
        "train": WorkflowStep(
            "Train",
            "Is it going well?",
            (
                "Start with the recommended settings.",
                "Switch gradient checkpointing on below 12 GB.",
                "Watch the loss, and stop when it levels off or rises.",
            ),
            "Better undertrained than overtrained: you can always train more.",
        ),
        "test": WorkflowStep(
            "Test",
            "Did it work?",
            (
                "Try various prompts, including subjects that the dataset does not have.",
                "Try strengths from 0.7 to 1.2.",
                "Try other base models of the same family.",
                "Share it, and listen.",
            ),
            "Good data beats perfect settings: if it did not work, look at the images first.",
        ),
    }
)


@dataclass(frozen=True)
class Correction:
    """A correction of one of the guide's figures: what it says and what holds."""

    setting: str
    says: str
    holds: str


CORRECTIONS = (
    Correction(
        "text_encoder_lr",
        "The guide calls 1e-4 ten times lower than 5e-4.",
        "It is a fifth. The studio keeps the guide's numbers, which work; a tenth would be 5e-5.",
    ),
    Correction(
        "optimizer",
        "The guide expects 2 to 3 GB less memory from the CAME optimizer.",
        "For a LoRA the whole state of AdamW is about 0.65 GB at dim 32 (85.1 million weights of 8 bytes), so no "
        "optimizer can save more than that. Checkpointing and a smaller batch save far more.",
    ),
)


def hints(setting: str) -> list[str]:
    """Return all advice on a setting, one sentence each: its reason first, corrections last."""
    found = []
    if setting in RECIPE:
        advice = RECIPE[setting]
        found.append(advice.why)
    found += [f"{item.rule}: {item.why}" for item in EXPERIMENTS if item.code == setting]
    if setting == "optimizer":
        found += [f"{name}: {advice.why}" for name, advice in OPTIMIZERS.items()]
    if setting == "optimizer_args":
        found += [f"{name}: {text}: {why}." for name, item in OPTIMIZERS.items() for text, why in item.arguments]
    found += [f"{item.advice}: {item.why}" for item in MEMORY_SAVINGS if item.setting == setting]
    found += [f"{sign.sign}: {sign.remedy}" for sign in WARNING_SIGNS.values() if setting in sign.settings]
    found += [f"{item.says} {item.holds}" for item in CORRECTIONS if item.setting == setting]
    if setting == "trigger_word":
        found += [f"{rule.rule} {rule.why}" for rule in TRIGGER_RULES]
    return found
