// Selection of images in the grid of Dataset. Ctrl or the box selects one, Shift a range; with the keyboard arrows move
// the focus within the grid, X selects, Shift with an arrow extends, Ctrl A selects the page, Escape clears and Delete
// sets aside. The selection stays while pages and filters change; "all" means every image that matches the filters.

window.studioSelection ||= {};
window.studioSelection.trigger = trigger;  // that of the component as it is now
if (!window.studioSelection.chosen) {
  const chosen = window.studioSelection.chosen = new Set();
  let all = false, anchor = null, from = '';
  const grid = () => document.querySelector('#dataset-grid .shots');
  const bar = () => document.querySelector('#dataset-selection .selection-bar');
  const cells = () => [...(grid()?.querySelectorAll('.cell') ?? [])];
  const isShown = () => !!grid()?.offsetParent;
  const isAside = () => grid()?.dataset.aside === 'true';
  const show = () => {
    const root = grid();
    if (!bar()) return;
    if (root && from !== `${root.dataset.project}:${root.dataset.aside}`) {  // ids of another place
      from = `${root.dataset.project}:${root.dataset.aside}`;
      chosen.clear();
      all = false;
    }
    const total = Number(root?.dataset.total ?? 0), count = all ? total : chosen.size;
    for (const cell of cells()) {
      const isChosen = all || chosen.has(cell.dataset.id);
      cell.classList.toggle('selected', isChosen);
      cell.querySelector('.select').checked = isChosen;
    }
    root?.classList.toggle('selecting', count > 0);
    bar().hidden = count === 0;
    bar().querySelector('.selected-count').textContent = `${count.toLocaleString('en')} selected`;
    const more = bar().querySelector('[data-act="all"]');
    more.textContent = `Select all ${total.toLocaleString('en')}`;
    more.hidden = count >= total;
    bar().querySelector('.of-images').hidden = isAside();
    bar().querySelector('.of-rejected').hidden = !isAside();
  };
  const clear = () => { chosen.clear(); all = false; show(); };
  const set = (cell, value) => {
    if (all) { all = false; chosen.clear(); }
    chosen[value ? 'add' : 'delete'](cell.dataset.id);
    anchor = cell.dataset.id;
  };
  const range = (cell) => {
    const list = cells(), end = list.indexOf(cell);
    const start = Math.max(0, list.findIndex((other) => other.dataset.id === anchor));
    for (const other of list.slice(Math.min(start, end), Math.max(start, end) + 1)) chosen.add(other.dataset.id);
  };
  const act = (name) => {
    if (name === 'none') return clear();
    if (name === 'all') { all = true; return show(); }
    const ids = all ? bar().dataset.all : [...chosen].join(',');
    const field = bar().querySelector('.selection-tag');
    const tag = name.endsWith('_tag') ? `:${field.value}` : '';
    if (tag === ':') return field.focus();
    if (name === 'set_aside' || name === 'restore') clear();
    window.studioQueue(() => window.studioSelection.trigger('click', { pick: `${name}:${ids}${tag}` }));
  };

  document.addEventListener('click', (event) => {
    const name = event.target.closest('#dataset-selection [data-act]')?.dataset.act;
    if (name) return act(name);
    const cell = event.target.closest('#dataset-grid .cell');
    if (!cell) return;
    const isBox = event.target.matches('.select'), isChosen = all || chosen.has(cell.dataset.id);
    if (event.shiftKey) range(cell);
    else if (isBox || event.ctrlKey || event.metaKey || isAside()) set(cell, !isChosen);
    else { anchor = cell.dataset.id; return; }  // a plain click opens the image
    if (!isBox) event.preventDefault();
    event.stopPropagation();
    window.getSelection()?.removeAllRanges();
    show();
  }, true);

  const columns = () => {
    const list = cells(), wrapped = list.findIndex((cell) => cell.offsetTop !== list[0].offsetTop);
    return wrapped < 1 ? list.length : wrapped;
  };
  const move = (event, cell) => {
    const list = cells(), at = list.indexOf(cell);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() }[event.key];
    const next = list[at + step];
    if (!next) return;
    if (event.shiftKey) {
      if (!chosen.size) set(cell, true);
      range(next);
      show();
    } else anchor = next.dataset.id;
    next.querySelector('.shot').focus();
  };
  document.addEventListener('keydown', (event) => {
    if (event.target.matches?.('.selection-tag') && window.studioKey('selection_tag', event)) act('add_tag');
    if (!isShown() || window.studioIsTyping(event) || document.querySelector('.lightbox')) return;
    const focused = event.target.closest?.('#dataset-grid .cell'), name = window.studioKey('grid', event);
    const current = focused ?? grid().querySelector('.shot[aria-pressed="true"]')?.closest('.cell');
    const count = all ? 1 : chosen.size;
    if (name.includes('Arrow') && focused) move(event, focused);
    else if (name === 'select' && current) {
      set(current, !(all || chosen.has(current.dataset.id)));
      show();
    } else if (name === 'page') {
      cells().forEach((cell) => chosen.add(cell.dataset.id));
      show();
    } else if (name === 'clear' && count) clear();
    else if (name === 'aside' && count && !isAside()) act('set_aside');
    else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);

  new MutationObserver((changes) => {
    if (changes.some((change) => change.target.closest?.('#dataset-grid'))) show();
  }).observe(document.body, { childList: true, subtree: true });
}
