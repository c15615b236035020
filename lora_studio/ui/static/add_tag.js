// The field that adds a tag; the arrow keys choose among the suggestions of tag_suggestions.js. Suggestions for another
// text are not offered: keys pressed before the right ones arrive wait for them.

const PAUSE_MS = 60;
const MAX_TYPED = 100;
const LISTED = '#review-suggestions [data-typed]';
let timer = 0, waiting = [];
const field = () => element.querySelector('input');
const isListed = () => {
  const list = document.querySelector(LISTED);
  return !!list && list.dataset.typed === field().value.slice(0, MAX_TYPED);
};
const options = () => [...document.querySelectorAll(`${LISTED} [role="option"]`)];
const select = (chosen) => options().forEach((option) => option.setAttribute('aria-selected', option === chosen));
const ask = (pause = 0) => {
  clearTimeout(timer);
  timer = setTimeout(() => trigger('input', { text: field().value }), pause);
};
const clear = () => {
  field().value = '';
  waiting = [];
  ask();
};
const add = (tag) => {
  clear();
  if (tag.trim()) window.studioQueue(() => trigger('submit', { pick: `add:${tag}` }));
};
const press = (key) => {
  const all = options();
  const at = all.findIndex((option) => option.getAttribute('aria-selected') === 'true');
  if (key === 'Enter') add(at >= 0 ? all[at].dataset.tag : field().value);
  else if (key === 'ArrowDown') select(all[Math.min(at + 1, all.length - 1)]);
  else select(all[at - 1]);
};
element.addEventListener('input', () => {
  waiting = [];
  ask(PAUSE_MS);
});
element.addEventListener('keydown', (event) => {
  const name = window.studioKey('add_tag', event);
  if (name === 'Escape') {
    clear();
    field().blur();
  } else if (name) {
    const choosing = waiting.length || name !== 'Enter';
    if (choosing && field().value && !isListed()) waiting.push(name);
    else if (isListed()) press(name);
    else if (name === 'Enter') add(field().value);
  } else return;
  event.preventDefault();
});
element.addEventListener('studio-listed', () => { if (isListed()) waiting.splice(0).forEach(press); });
element.addEventListener('studio-add', (event) => add(event.detail));
element.addEventListener('focusout', () => {
  waiting = [];
  if (document.querySelector(LISTED)) trigger('input', { text: '' });
});
