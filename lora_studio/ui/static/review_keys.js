// Keys of Review: each presses the button of the same purpose, unless the focus is in a field.

if (!window.studioReviewKeys) {
  window.studioReviewKeys = true;
  const buttons = {
    ArrowLeft: 'review-previous', k: 'review-previous', ArrowRight: 'review-next', j: 'review-next',
    Enter: 'review-mark', ' ': 'review-mark', r: 'review-toggle', Delete: 'review-aside',
  };
  const typing = 'input, textarea, select, [contenteditable], [role="tab"], [role="listbox"]';
  document.addEventListener('keydown', (event) => {
    if (event.altKey || event.target.closest(typing)) return;
    const press = (id) => {
      const button = document.getElementById(id);
      if (!button || !button.offsetParent || button.disabled) return;
      event.preventDefault();
      button.click();
    };
    if (event.ctrlKey || event.metaKey) {
      if (event.key.toLowerCase() === 'z' && !event.shiftKey) press('review-undo');
      return;
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === 'a') {
      const field = document.querySelector('#review-add input');
      if (field && field.offsetParent) { event.preventDefault(); field.focus(); }
      return;
    }
    if (!buttons[key]) return;
    if ((key === 'Enter' || key === ' ') && event.target.closest('button, a, summary, [tabindex]')) return;
    if (key === 'Delete' && event.target.closest('.chip')) return;
    press(buttons[key]);
  });
}
