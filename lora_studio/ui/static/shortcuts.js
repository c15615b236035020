// Keys of the page, which ui/shortcuts.py declares, and the dialog that lists them ("?" or its button).
// window.studioKey(place, event) returns the action of a pressed key in a place; empty while the list is open.
// window.studioIsTyping(event) says whether the key belongs to a field of text or a list.

const sheet = () => document.querySelector('dialog.shortcuts');
if (!window.studioKey) {
  const TYPING = 'input:not([type=radio], [type=checkbox]), textarea, select, [contenteditable], [role="listbox"]';
  const ACTIONS = JSON.parse(sheet().dataset.actions);
  const nameOf = ({ key, ctrlKey, metaKey, altKey, shiftKey }) => {
    const isCharacter = key.length === 1, ctrl = ctrlKey || metaKey;
    const shift = shiftKey && (ctrl || !isCharacter);
    return (ctrl ? 'Ctrl+' : '') + (altKey ? 'Alt+' : '') + (shift ? 'Shift+' : '') + (isCharacter ? key.toLowerCase() : key);
  };
  window.studioKey = (place, event) => {
    if (sheet()?.open && place !== 'page') return '';
    return Object.hasOwn(ACTIONS[place], nameOf(event)) ? ACTIONS[place][nameOf(event)] : '';
  };
  window.studioIsTyping = (event) => !!event.target.closest?.(TYPING);
  const toggle = () => (sheet().open ? sheet().close() : sheet().showModal());
  document.addEventListener('keydown', (event) => {
    if (sheet()?.open && event.key === 'Tab') event.preventDefault();  // Close is all that can have the focus
    else if (window.studioKey('page', event) && !window.studioIsTyping(event)) {
      event.preventDefault();
      toggle();
    }
  });
  document.addEventListener('click', (event) => {
    if (event.target.closest('[data-shortcuts]') || event.target.closest('dialog.shortcuts [data-close]')) toggle();
    else if (event.target === sheet()) toggle();  // beside the dialog
  });
}
