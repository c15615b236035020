// Suggestions below the field that adds a tag: a click adds one.

element.addEventListener('mousedown', (event) => {
  const option = event.target.closest('[role="option"]');
  if (!option) return;
  event.preventDefault();
  const field = document.querySelector('#review-add input');
  field.dispatchEvent(new CustomEvent('studio-add', { bubbles: true, detail: option.dataset.tag }));
});
watch('value', () => {
  const field = document.querySelector('#review-add input');
  if (!field) return;
  field.setAttribute('aria-expanded', String(!!element.querySelector('li')));
  field.dispatchEvent(new CustomEvent('studio-listed', { bubbles: true }));
});
