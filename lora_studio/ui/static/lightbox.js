// The large image of Test. The arrows show its neighbours, s stars it, Escape closes it; Tab stays inside. When it closes,
// the focus returns to its image in the grid. The slider shows the image that it is compared with up to its place.

if (!window.studioLightbox) {
  window.studioLightbox = true;
  const box = () => document.querySelector('#test-large .lightbox');
  const focusable = 'button, a[href], input, summary';
  let shown = null;
  let key = '';

  document.addEventListener('keydown', (event) => {
    const open = box();
    if (!open || event.altKey || event.ctrlKey || event.metaKey) return;
    if (document.querySelector('dialog[open]')) return;
    if (event.key === 'Tab') {
      const items = [...open.querySelectorAll(focusable)].filter((item) => item.offsetParent);
      const edge = event.shiftKey ? items[0] : items[items.length - 1];
      if (document.activeElement === edge || !open.contains(document.activeElement)) {
        event.preventDefault();
        (event.shiftKey ? items[items.length - 1] : items[0]).focus();
      }
      return;
    }
    if (event.target.matches?.('input[type="range"]') && event.key.startsWith('Arrow')) return;
    const name = window.studioKey('lightbox', event);
    const button = name && open.querySelector(`[data-key="${CSS.escape(name)}"] button`);
    if (!button) return;
    event.preventDefault();
    key = name;
    button.click();
  });

  document.addEventListener('input', (event) => {
    const slider = event.target.closest?.('#test-large .slider input');
    if (slider) slider.closest('.stage').querySelector('.over').style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
  });

  new MutationObserver(() => {
    const open = box();
    const cell = open?.dataset.cell ?? null;
    if (open && (cell !== shown || !open.contains(document.activeElement))) {
      (open.querySelector(`[data-key="${CSS.escape(key)}"] button`) ?? open).focus({ preventScroll: true });
    } else if (!open && shown) {
      document.querySelector(`#test-grid [data-pick="${CSS.escape(shown)}"]`)?.focus({ preventScroll: true });
    }
    if (cell !== shown) document.body.classList.toggle('has-lightbox', !!open);
    shown = cell;
  }).observe(document.body, { childList: true, subtree: true });
}
