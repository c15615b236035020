// Filters the rows of a long table by the words that are typed above it. They survive an update of the table.

if (!window.studioTableSearch) {
  window.studioTableSearch = true;
  const typed = {};
  const filter = (input) => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...input.closest('.searched').querySelectorAll('tbody tr')];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    input.parentElement.querySelector('output').textContent = words.length ? `${shown} of ${rows.length}` : '';
  };
  document.addEventListener('input', ({ target }) => {
    if (!target.matches?.('.table-search')) return;
    typed[target.ariaLabel] = target.value;
    filter(target);
  });
  new MutationObserver(() => {
    for (const input of document.querySelectorAll('.table-search:not([data-ready])')) {
      input.dataset.ready = '';
      input.value = typed[input.ariaLabel] ?? '';
      if (input.value) filter(input);
    }
  }).observe(document.body, { childList: true, subtree: true });
}
