"""A caption's tags as chips: a click takes one out, dragging or Alt with an arrow moves it, a field adds one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from markupsafe import Markup

from lora_studio.dataset.captions.text import join_tags, split_tags, word_pattern
from lora_studio.dataset.captions.token_count import truncation_point
from lora_studio.ui.dataset.suggestions import Suggestion

SURE, UNSURE = 0.7, 0.4  # of a tagger: from here on sure, below not

CHIPS_SCRIPT = """
const ask = (pick) => trigger('click', { pick });
const chips = () => [...element.querySelectorAll('.chip')];
let held = null, focused = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pick]');
  if (button) ask(button.dataset.pick);
});
element.addEventListener('keydown', (event) => {
  const chip = event.target.closest('.chip');
  if (!chip || event.target !== chip) return;
  const place = chips().indexOf(chip);
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (event.key === 'Delete' || event.key === 'Backspace') ask(`drop:${chip.dataset.tag}`);
  else if (step && event.altKey && place + step >= 0) {
    focused = chip.dataset.tag;
    ask(`move:${place + step}:${chip.dataset.tag}`);
  } else if (step) { const next = chips()[place + step]; if (next) next.focus(); }
  else return;
  event.preventDefault();
  event.stopPropagation();
});
element.addEventListener('dragstart', (event) => {
  const chip = event.target.closest('.chip');
  if (!chip) return;
  held = chip.dataset.tag;
  event.dataTransfer.effectAllowed = 'move';
  event.dataTransfer.setData('text/plain', held);
});
element.addEventListener('dragover', (event) => {
  const chip = event.target.closest('.chip');
  if (held === null || !chip) return;
  event.preventDefault();
  chips().forEach((other) => other.classList.toggle('over', other === chip));
});
element.addEventListener('drop', (event) => {
  const chip = event.target.closest('.chip');
  if (held === null || !chip) return;
  event.preventDefault();
  if (chip.dataset.tag !== held) ask(`move:${chips().indexOf(chip)}:${held}`);
  held = null;
});
element.addEventListener('dragend', () => { held = null; chips().forEach((chip) => chip.classList.remove('over')); });
watch('value', () => {
  const chip = focused === null ? null : chips().find((other) => other.dataset.tag === focused);
  focused = null;
  if (chip) chip.focus();
});
"""
ADD_SCRIPT = """
const field = () => element.querySelector('input');
const options = () => [...document.querySelectorAll('#review-suggestions [role="option"]')];
const mark = (chosen) => options().forEach((option) => option.setAttribute('aria-selected', option === chosen));
const send = (tag) => {
  field().value = '';
  trigger('input', { text: '' });
  if (tag.trim()) trigger('submit', { pick: `add:${tag}` });
};
element.addEventListener('input', () => trigger('input', { text: field().value }));
element.addEventListener('keydown', (event) => {
  const all = options();
  const at = all.findIndex((option) => option.getAttribute('aria-selected') === 'true');
  if (event.key === 'Enter') send(at >= 0 ? all[at].dataset.tag : field().value);
  else if (event.key === 'ArrowDown') mark(all[Math.min(at + 1, all.length - 1)]);
  else if (event.key === 'ArrowUp') mark(all[at - 1]);
  else if (event.key === 'Escape') {
    field().value = '';
    trigger('input', { text: '' });
    field().blur();
  } else return;
  event.preventDefault();
});
element.addEventListener('studio-add', (event) => send(event.detail));
element.addEventListener('focusout', () => { if (options().length) trigger('input', { text: '' }); });
"""
SUGGEST_SCRIPT = """
element.addEventListener('mousedown', (event) => {
  const option = event.target.closest('[role="option"]');
  if (!option) return;
  event.preventDefault();
  const field = document.querySelector('#review-add input');
  field.dispatchEvent(new CustomEvent('studio-add', { bubbles: true, detail: option.dataset.tag }));
});
watch('value', () => {
  const field = document.querySelector('#review-add input');
  if (field) field.setAttribute('aria-expanded', String(!!element.querySelector('li')));
});
"""


def tag_chips(caption: str, trigger: str, confidences: Mapping[str, float]) -> Markup:
    """A caption's tags, each with its button. What the text encoders do not read is struck out.

    `confidences` says how sure a tagger is (0 to 1) of tags, by their names as they stand in captions.
    """
    tags = split_tags(caption)
    if not tags:
        return Markup('<p class="hint chips">No tags yet.</p>')
    read = truncation_point(join_tags(tags))
    words = [word_pattern(word) for word in split_tags(trigger)]
    sure = {tag.casefold(): value for tag, value in confidences.items()}
    shown, start = [], 0
    for tag in tags:
        end = start + len(tag)
        holds = any(word.search(tag) for word in words)
        shown.append(_chip(tag, sure.get(tag.casefold()), trigger=holds, read=max(min(read, end) - start, 0)))
        start = end + 2
    key = _KEY if confidences else Markup("")
    return Markup('<ul class="chips" aria-label="Tags of the caption">{}</ul>{}').format(Markup("").join(shown), key)


_KEY = Markup(
    '<p class="hint chip-key">The tagger is <span class="chip high">sure</span> <span class="chip middle">less sure'
    '</span> <span class="chip low">unsure</span> <span class="chip">does not see it</span></p>'
)


def _chip(tag: str, confidence: float | None, *, trigger: bool, read: int) -> Markup:
    classes = ["chip"]
    title = "Drag it, or Alt with an arrow key, to move it; Delete takes it out."
    if trigger:
        classes.append("trigger")
        title = f"The trigger word. {title}"
    elif confidence is not None:
        classes.append("high" if confidence >= SURE else "middle" if confidence >= UNSURE else "low")
        title = f"The tagger is sure of it to {confidence:.0%}. {title}"
    if read < len(tag):
        title = f"The text encoders do not read {'it' if not read else 'the end of it'}. {title}"
    text = Markup("{}<s>{}</s>").format(tag[:read], tag[read:]) if read < len(tag) else Markup("{}").format(tag)
    return Markup(
        '<li class="{}" draggable="true" tabindex="0" data-tag="{}" title="{}"><span>{}</span>'
        '<button type="button" tabindex="-1" data-pick="drop:{}" aria-label="Remove {}">×</button></li>'
    ).format(" ".join(classes), tag, title, text, tag, tag)


def add_field() -> Markup:
    """The field in which a tag is typed."""
    return Markup(
        '<input type="text" class="add-tag" placeholder="Add a tag (A)" aria-label="Add a tag" autocomplete="off" '
        'spellcheck="false" role="combobox" aria-expanded="false" aria-controls="review-suggestions">'
    )


def suggestion_list(suggestions: Iterable[Suggestion]) -> Markup:
    """What fits what was typed, to be chosen with the arrow keys or a click."""
    options = Markup("").join(
        Markup(
            '<li role="option" aria-selected="false" data-tag="{0}"><span>{0}</span><span class="hint">{1}</span></li>'
        ).format(word.tag, f"{word.images:,}" if word.images else "")
        for word in suggestions
    )
    return (
        Markup('<ul class="suggestions" role="listbox" aria-label="Known tags">{}</ul>').format(options)
        if options
        else options
    )
