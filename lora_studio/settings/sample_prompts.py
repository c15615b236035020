"""Sample prompts whose lines have options in kohya's syntax.

A line like `{trigger}, portrait --n blurry --w 832 --h 1216 --d 7 --s 30 --l 5 --ss euler_a` is a prompt with a
negative prompt, a size in px, a seed, sampling steps, a CFG scale and a sampler. What a line leaves out is taken from
the recipe's settings of samples. Lines that begin with # are comments. As in sd-scripts, an option begins with a space
and two dashes, the last of several equal ones counts, and sizes are rounded down to multiples of 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lora_studio import guide
from lora_studio.errors import validation_message
from lora_studio.models.catalogue import find_base
from lora_studio.settings.choices import Sampler
from lora_studio.settings.sections.samples import SampleSettings

TRIGGER = "{trigger}"  # the place of the trigger word in a prompt
AUTO_NEGATIVE = guide.RECIPE["sample_negative_prompt"].value
OPTIONS = {
    "n": "sample_negative_prompt",
    "w": "sample_width",
    "h": "sample_height",
    "d": "sample_seed",
    "s": "sample_steps",
    "l": "sample_guidance",
    "ss": "sample_sampler",
}
_SIDES = ("sample_width", "sample_height")
_SIDE_MULTIPLE = 8


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt, and the settings that its image is drawn with: the recipe's, changed by the line's own options.

    `errors` are sentences about wrong options, each with its remedy.
    """

    text: str
    settings: SampleSettings
    errors: tuple[str, ...] = ()


def read_sample_prompts(settings: SampleSettings) -> list[SamplePrompt]:
    """Return the prompts of the lines that are not comments; wrong options are ignored here, and in their `errors`."""
    lines = enumerate(settings.sample_prompts, 1)
    return [_read_line(number, line, settings) for number, line in lines if not line.startswith("#")]


def sample_prompt_errors(settings: SampleSettings, *, zero_terminal_snr: bool) -> list[str]:
    """Return a sentence with the remedy for each wrong option, and for each sampler that the base does not allow.

    `zero_terminal_snr` says whether the noise schedule of the run ends in pure noise.
    """
    prompts = read_sample_prompts(settings)
    found = [error for prompt in prompts for error in prompt.errors]
    if zero_terminal_snr:
        used = dict.fromkeys(prompt.settings.sample_sampler for prompt in prompts)
        known = ", ".join(sampler.value for sampler in Sampler if sampler.supports_zero_snr)
        found += [
            f"sample_sampler is {sampler.value}, which cannot start from the pure noise of zero terminal SNR. "
            f"Use one of {known}."
            for sampler in used
            if not sampler.supports_zero_snr
        ]
    return found


def negative_prompt(settings: SampleSettings, base: str) -> str:
    """Return the negative prompt; `auto` is that of the base model if the catalogue has it, else empty."""
    return negative_prompt_for(settings.sample_negative_prompt, base)


def negative_prompt_for(text: str, base: str) -> str:
    """Return a negative prompt, in which `auto` means that of the base model, see `negative_prompt`."""
    if text != AUTO_NEGATIVE:
        return text
    known = find_base(base)
    return known.negative_prompt if known else ""


def fill_trigger(prompt: str, trigger_word: str) -> str:
    """Replace {trigger} in a prompt; without a trigger word, remove it with its comma."""
    filled = prompt.replace(TRIGGER, trigger_word)
    if filled == prompt or trigger_word:
        return filled
    return ", ".join(part.strip() for part in filled.split(",") if part.strip())


def _read_line(number: int, line: str, settings: SampleSettings) -> SamplePrompt:
    text, *options = f" {line}".split(" --")
    changes: dict[str, Any] = {}
    errors = []
    for option in options:
        letters, _, given = option.partition(" ")
        try:
            changes |= _parse_option(letters, given.strip())
        except ValueError as error:
            errors.append(f"sample_prompts, line {number}: {error}")
    return SamplePrompt(text.strip(), settings.model_copy(update=changes), tuple(errors))


def _parse_option(letters: str, given: str) -> dict[str, Any]:
    """Return the setting that an option changes, with its value; raise ValueError with a sentence and the remedy."""
    name = OPTIONS.get(letters.lower())
    if name is None:
        known = _listed([f"--{option}" for option in OPTIONS])
        raise ValueError(f"--{letters} is not an option of a sample. Remove it, or use {known}.")
    value: str | int = given
    if name in _SIDES and given.isdecimal():
        value = int(given) // _SIDE_MULTIPLE * _SIDE_MULTIPLE
    checked = SampleSettings.defaults()
    try:
        setattr(checked, name, value)
    except ValidationError as error:
        example = "" if name == "sample_sampler" else f" Write for example --{letters} {_EXAMPLES[name]}."
        raise ValueError(f"--{letters} is {given!r}: {validation_message(error.errors()[0])}.{example}") from error
    return {name: getattr(checked, name)}


_EXAMPLES = {
    "sample_negative_prompt": "blurry",
    "sample_width": "1024",
    "sample_height": "1024",
    "sample_seed": "42",
    "sample_steps": "20",
    "sample_guidance": "6",
}


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
