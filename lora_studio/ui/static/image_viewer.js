// The large view of Dataset: zoom with the wheel or + - 0, a crop drawn with the pointer, a focus point set by a click.
// Buttons with data-key are pressed by that key; on the zoomed image itself the arrows scroll. The focus stays inside and
// returns to the image that opened the view.

window.studioViewer ||= {};
window.studioViewer.trigger = trigger;  // that of the component as it is now
if (!window.studioViewer.zoom) {
  const viewer = window.studioViewer;
  Object.assign(viewer, { zoom: 1, tool: '', box: null, start: null, image: null, inGrid: false });
  const open = () => document.querySelector('#dataset-viewer .viewer');
  const frame = () => open()?.querySelector('.viewer-frame');
  const send = (pick) => window.studioQueue(() => viewer.trigger('click', { pick }));
  const clamp = (value) => Math.max(0, Math.min(1, value));
  const share = (event) => {
    const { left, top, width, height } = frame().querySelector('img').getBoundingClientRect();
    return [clamp((event.clientX - left) / width), clamp((event.clientY - top) / height)];
  };
  const corners = ([x, y], [u, v]) => [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)];
  const show = () => {
    if (!open()) return;
    if (frame()) frame().style.setProperty('--zoom', viewer.zoom);
    for (const button of open().querySelectorAll('[data-tool]')) button.setAttribute('aria-pressed', button.dataset.tool === viewer.tool);
    open().dataset.using = viewer.tool;
    const drawn = frame()?.querySelector('.crop-box');
    if (drawn) drawn.hidden = !viewer.box;
    if (viewer.box) {
      const [left, top, right, bottom] = viewer.box.map((value) => 100 * value);
      drawn.style.inset = `${top}% ${100 - right}% ${100 - bottom}% ${left}%`;
    }
    open().querySelector('[data-crop]').hidden = !viewer.box;
  };
  const setZoom = (name) => {
    viewer.zoom = name === 'fit' ? 1 : Math.max(1, Math.min(8, viewer.zoom * (name === 'in' ? 1.25 : 0.8)));
    show();
  };
  const press = (button) => {
    const { zoom, tool } = button.dataset;
    if (zoom) setZoom(zoom);
    else if (tool) { viewer.tool = viewer.tool === tool ? '' : tool; viewer.box = null; show(); }
    else if ('crop' in button.dataset) { send(`crop:${viewer.box.map((value) => value.toFixed(5))}`); viewer.box = null; viewer.tool = ''; show(); }
    else button.click();
  };
  document.addEventListener('click', (event) => {
    if (!open()) viewer.inGrid = false;
    const button = event.target.closest('.viewer [data-zoom], .viewer [data-tool], .viewer [data-crop]');
    if (button) press(button);
    else if (event.target === open()) send('close');
  });
  document.addEventListener('pointerdown', (event) => {
    if (!viewer.tool || !event.target.closest('.viewer-frame')) return;
    event.preventDefault();
    if (viewer.tool === 'focus') { viewer.tool = ''; show(); return send(`focus:${share(event).map((value) => value.toFixed(4))}`); }
    viewer.start = share(event);
  });
  document.addEventListener('pointermove', (event) => {
    if (!viewer.start || !frame()) return;
    viewer.box = corners(viewer.start, share(event));
    show();
  });
  document.addEventListener('pointerup', () => {
    const [left, top, right, bottom] = viewer.box ?? [0, 0, 0, 0];
    if (viewer.start && (right - left < 0.02 || bottom - top < 0.02)) viewer.box = null;
    viewer.start = null;
    show();
  });
  document.addEventListener('wheel', (event) => {
    if (!event.target.closest?.('.viewer-stage')) return;
    event.preventDefault();
    setZoom(event.deltaY < 0 ? 'in' : 'out');
  }, { passive: false });
  document.addEventListener('keydown', (event) => {
    if (!open()) viewer.inGrid = !!event.target.closest?.('#dataset-grid');
    if (!open() || event.altKey || event.ctrlKey || event.metaKey) return;
    const name = window.studioKey('viewer', event);
    if (document.querySelector('dialog[open]')) return;
    if (event.key === 'Tab') {
      const items = [...open().querySelectorAll('button, summary, [tabindex="0"]')].filter((item) => item.offsetParent);
      const edge = event.shiftKey ? items[0] : items[items.length - 1];
      if (document.activeElement !== edge && open().contains(document.activeElement)) return;
      event.preventDefault();
      return (event.shiftKey ? items[items.length - 1] : items[0]).focus();
    }
    if (name.startsWith('Arrow') && event.target.matches('.viewer-stage') && viewer.zoom > 1) return;  // scrolls
    if (name === 'Escape' && (viewer.tool || viewer.box)) {
      viewer.tool = '';
      viewer.box = null;
      show();
    } else {
      if (name === 'Enter' && (!viewer.box || event.target.closest('button, summary'))) return;
      const button = name && open().querySelector(`[data-key="${CSS.escape(name)}"]`);
      if (!button || button.hidden) return;
      press(button);
    }
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);
  new MutationObserver((changes) => {
    if (!changes.some((change) => change.target.closest?.('#dataset-viewer'))) return;
    const shown = open()?.dataset.image ?? null;
    if (shown !== viewer.image) Object.assign(viewer, { zoom: 1, tool: '', box: null });
    if (shown && !open().contains(document.activeElement)) open().focus({ preventScroll: true });
    if (!shown && viewer.image) {
      const place = viewer.inGrid ? '#dataset-grid .shot[aria-pressed="true"]' : '#review-picture button';
      document.querySelector(place)?.focus({ preventScroll: true });
    }
    document.body.classList.toggle('has-lightbox', !!document.querySelector('.lightbox'));
    viewer.image = shown;
    show();
  }).observe(document.body, { childList: true, subtree: true });
}
