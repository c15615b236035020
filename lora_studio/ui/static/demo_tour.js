// Runs in the gr.HTML of the guided tour: marks the next button, asks for the next step after a click anywhere, and hides
// the tour for good once it was ended, until the example set is tried again.
const KEY = 'lora-studio-tour-ended';
const card = () => element.querySelector('.demo-tour');
const hasEnded = () => localStorage.getItem(KEY) !== null;
let marked = null;
let later = 0;

const point = () => {
  marked?.classList.remove('tour-target');
  marked = null;
  const shown = card();
  if (!shown) return;
  shown.hidden = hasEnded();
  if (shown.hidden) return;
  for (const selector of JSON.parse(shown.dataset.targets)) {
    marked = [...document.querySelectorAll(selector)].find((one) => one.offsetParent !== null);
    if (marked) break;
  }
  marked?.classList.add('tour-target');
};

document.addEventListener('click', (event) => {
  if (event.target.closest?.('#welcome-example')) localStorage.removeItem(KEY);
  if (event.target.closest?.('[data-tour-end]')) {
    localStorage.setItem(KEY, 'ended');
    point();
  }
  if (!card() || hasEnded()) return;
  clearTimeout(later);
  later = setTimeout(() => {
    point();
    window.studioQueue(() => trigger('click', { pick: 'next' }));
  }, 1500);
}, true);
// What the card points at may be shown a moment after it.
const pointSoon = () => [0, 400, 1500, 4000].forEach((delay) => setTimeout(point, delay));
new MutationObserver(pointSoon).observe(element, { childList: true, subtree: true });
pointSoon();
