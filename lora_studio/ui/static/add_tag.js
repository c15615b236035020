// The field that adds a tag; the arrow keys choose among the suggestions of tag_suggestions.js.

const field = () => element.querySelector('input');
const options = () => [...document.querySelectorAll('#review-suggestions [role="option"]')];
const select = (chosen) => options().forEach((option) => option.setAttribute('aria-selected', option === chosen));
const add = (tag) => {
  field().value = '';
  trigger('input', { text: '' });
  if (tag.trim()) trigger('submit', { pick: `add:${tag}` });
};
element.addEventListener('input', () => trigger('input', { text: field().value }));
element.addEventListener('keydown', (event) => {
  const all = options();
  const at = all.findIndex((option) => option.getAttribute('aria-selected') === 'true');
  if (event.key === 'Enter') add(at >= 0 ? all[at].dataset.tag : field().value);
  else if (event.key === 'ArrowDown') select(all[Math.min(at + 1, all.length - 1)]);
  else if (event.key === 'ArrowUp') select(all[at - 1]);
  else if (event.key === 'Escape') {
    field().value = '';
    trigger('input', { text: '' });
    field().blur();
  } else return;
  event.preventDefault();
});
element.addEventListener('studio-add', (event) => add(event.detail));
element.addEventListener('focusout', () => { if (options().length) trigger('input', { text: '' }); });
