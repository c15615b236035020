// Runs in a gr.HTML (js_on_load): a click on a button with data-pick fires the component's click event with its value.
element.addEventListener('click', (event) => {
  const picked = event.target.closest('[data-pick]');
  if (picked && element.contains(picked)) trigger('click', { pick: picked.dataset.pick });
});
