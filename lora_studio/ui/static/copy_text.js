// Runs in a gr.HTML: a click on its button with data-copy copies the text of the <pre> in its <details>, or of the
// component's only one, and says so for two seconds.
const copy = async (text) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = Object.assign(document.createElement('textarea'), { value: text });  // a page without https
  document.body.append(area);
  area.select();
  const done = document.execCommand('copy');
  area.remove();
  if (!done) throw new Error('The browser does not copy.');
};
element.addEventListener('click', async (event) => {
  const button = event.target.closest('[data-copy]');
  if (!button) return;
  const label = button.dataset.label ||= button.textContent;
  const text = (button.closest('details') ?? element).querySelector('pre');
  try {
    await copy(text.textContent);
    button.textContent = 'Copied';
  } catch {
    text.hidden = false;  // to be copied by hand
    window.getSelection().selectAllChildren(text);
    button.textContent = 'Copy the selected text';
  }
  setTimeout(() => { button.textContent = label; }, 2000);
});
