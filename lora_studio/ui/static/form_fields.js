// Corrections of Gradio's form fields.
// Text boxes: the reset button is in the <label>, before the box, so that a click on the label would press the button.
// Here the box gets the label and its name, and the help text becomes its description.
// Choices: each would be a group of its own, so that the arrow keys would not move between them.
// Lists: Tab would open the list again after it lost the focus.

if (!window.studioFormFields) {
  window.studioFormFields = true;
  const block = (part) => part.closest('.block[id]');
  const identify = (part, suffix) => (part.id ||= `${block(part).id}-${suffix}`);
  const title = (part) => identify(block(part).querySelector('[data-testid="block-info"], .label-text'), 'label');
  const connect = () => {
    document.querySelectorAll('label > .input-container :is(input, textarea):not([id])').forEach((box) => {
      box.closest('label').htmlFor = identify(box, 'input');
      box.setAttribute('aria-labelledby', title(box));
      box.setAttribute('aria-describedby', `${block(box).id}-help`);
    });
    document.querySelectorAll('.block[id] [type="radio"]:not([name$="-choice"])').forEach((choice) => {
      choice.name = `${block(choice).id}-choice`;
    });
    document.querySelectorAll('label > .info-text:not([id])').forEach((help) => identify(help, 'help'));
    document.querySelectorAll('.field .custom-button:not([id])').forEach((button) => {
      button.setAttribute('aria-labelledby', `${identify(button, 'reset')} ${title(button)}`);
    });
  };
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Tab' && event.target.getAttribute('role') === 'combobox') event.stopPropagation();
  }, { capture: true });
  connect();
  new MutationObserver(connect).observe(document.body, { childList: true, subtree: true });
}
