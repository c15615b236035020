// Runs in a gr.HTML (js_on_load): a click on a button with data-pick fires the component's click event with its value,
// after the requests before it.
element.addEventListener('click', (event) => {
  const picked = event.target.closest('[data-pick]');
  if (!picked || !element.contains(picked) || element.closest('.locked')) return;
  const { pick } = picked.dataset;
  window.studioQueue(() => trigger('click', { pick }));
});
