// Keys of Review: each does what the button of the same purpose does, unless the focus is in a text field.

window.studioReviewKeys ||= {};
window.studioReviewKeys.trigger = trigger;  // that of the component as it is now
if (!window.studioReviewKeys.send) {
  window.studioReviewKeys.send = (presses) => window.studioReviewKeys.trigger('click', { presses });
  // What the focused element does with a key itself, such as a button with Enter.
  const pressable = 'button, a, summary, [tabindex], [type=checkbox], [type=radio]:not(:checked)';
  const horizontal = '[role="tab"], [type=radio]';
  const own = { Enter: pressable, ' ': pressable, ArrowLeft: horizontal, ArrowRight: horizontal, Delete: '.chip' };
  const isShown = () => !!document.getElementById('review-mark')?.offsetParent;
  const press = (event, name) => {
    event.preventDefault();
    document.activeElement.closest('.shot')?.blur();
    window.studioPress(window.studioReviewKeys.send, name, event.repeat);
  };
  document.addEventListener('keydown', (event) => {
    if (!isShown() || document.querySelector('.lightbox') || window.studioIsTyping(event)) return;
    const name = window.studioKey('review', event);
    if (name === 'add') {
      event.preventDefault();
      document.querySelector('#review-add input').focus();
    } else if (name && !(own[event.key] && event.target.closest(own[event.key]))) press(event, name);
  });
  // What was clicked with the mouse does not keep the focus, so that Enter and the arrows continue the review.
  document.addEventListener('click', (event) => {
    const choice = event.detail && event.target.closest('#dataset-section label')?.querySelector('input');
    if (choice) setTimeout(() => choice.blur());
    if (event.detail && isShown()) event.target.closest('.shot, #dataset-filter button, .review-actions button')?.blur();
  });
}
