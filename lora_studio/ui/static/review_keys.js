// Keys of Review: each presses the button of the same purpose, unless the focus is in a text field.

if (!window.studioReviewKeys) {
  window.studioReviewKeys = true;
  const buttons = {
    ArrowLeft: 'review-previous', k: 'review-previous', ArrowRight: 'review-next', j: 'review-next',
    Enter: 'review-mark', ' ': 'review-mark', r: 'review-toggle', Delete: 'review-aside',
  };
  const typing = 'input:not([type=radio], [type=checkbox]), textarea, select, [contenteditable], [role="listbox"]';
  // What the focused element does with a key itself, such as a button with Enter.
  const pressable = 'button, a, summary, [tabindex], [type=checkbox], [type=radio]:not(:checked)';
  const own = { Enter: pressable, ' ': pressable, ArrowLeft: '[role="tab"]', ArrowRight: '[role="tab"]', Delete: '.chip' };
  const shown = (id) => {
    const button = document.getElementById(id);
    return button && button.offsetParent ? button : null;
  };
  const press = (event, id) => {
    if (!shown(id)) return;
    event.preventDefault();
    const thumbnail = document.activeElement.closest('.shot');
    if (thumbnail) thumbnail.blur();
    window.studioQueue(() => {
      const button = shown(id);
      if (!button || button.disabled) return false;
      return button.click();
    }, event.repeat);
  };
  document.addEventListener('keydown', (event) => {
    if (event.altKey || event.target.closest(typing)) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey) {
      if (key === 'z' && !event.shiftKey) press(event, 'review-undo');
    } else if (key === 'a') {
      const field = document.querySelector('#review-add input');
      if (field && field.offsetParent) { event.preventDefault(); field.focus(); }
    } else if (buttons[key] && !(own[key] && event.target.closest(own[key]))) press(event, buttons[key]);
  });
  // A button that was clicked with the mouse does not keep the focus, so that Enter continues the review.
  document.addEventListener('click', (event) => {
    const button = event.detail && shown('review-mark') && event.target.closest('.shot, .review-actions button');
    if (button) button.blur();
  });
}
