// Keys of the enlarged image in Test: the arrows show its neighbours, Escape closes it.

if (!window.studioGridKeys) {
  window.studioGridKeys = true;
  const typing = 'input, textarea, select, [contenteditable], [role="listbox"], [role="tab"]';
  document.addEventListener('keydown', (event) => {
    const image = document.querySelector('#test-large .large');
    if (!image?.offsetParent || event.altKey || event.ctrlKey || event.metaKey || event.target.closest(typing)) return;
    const button = image.querySelector(`[data-key="${event.key}"] button`);
    if (!button) return;
    event.preventDefault();
    button.click();
  });
}
