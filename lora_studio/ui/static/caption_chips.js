// Tags of a caption as chips: a click on × removes one, dragging or Alt with an arrow key moves it.

const ask = (pick) => trigger('click', { pick });
const chips = () => [...element.querySelectorAll('.chip')];
let dragged = null, focused = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pick]');
  if (button) ask(button.dataset.pick);
});
element.addEventListener('keydown', (event) => {
  const chip = event.target.closest('.chip');
  if (!chip || event.target !== chip) return;
  const index = chips().indexOf(chip);
  const name = window.studioKey('chips', event);
  const step = { previous: -1, earlier: -1, next: 1, later: 1 }[name];
  if (name === 'drop') ask(`drop:${chip.dataset.tag}`);
  else if (['earlier', 'later'].includes(name) && index + step >= 0) {
    focused = chip.dataset.tag;
    ask(`move:${index + step}:${chip.dataset.tag}`);
  } else if (step) { const next = chips()[index + step]; if (next) next.focus(); }
  else return;
  event.preventDefault();
  event.stopPropagation();
});
element.addEventListener('dragstart', (event) => {
  const chip = event.target.closest('.chip');
  if (!chip) return;
  dragged = chip.dataset.tag;
  event.dataTransfer.effectAllowed = 'move';
  event.dataTransfer.setData('text/plain', dragged);
});
element.addEventListener('dragover', (event) => {
  const chip = event.target.closest('.chip');
  if (dragged === null || !chip) return;
  event.preventDefault();
  chips().forEach((other) => other.classList.toggle('over', other === chip));
});
element.addEventListener('drop', (event) => {
  const chip = event.target.closest('.chip');
  if (dragged === null || !chip) return;
  event.preventDefault();
  if (chip.dataset.tag !== dragged) ask(`move:${chips().indexOf(chip)}:${dragged}`);
  dragged = null;
});
element.addEventListener('dragend', () => { dragged = null; chips().forEach((chip) => chip.classList.remove('over')); });
watch('value', () => {
  const chip = focused === null ? null : chips().find((other) => other.dataset.tag === focused);
  focused = null;
  if (chip) chip.focus();
});
