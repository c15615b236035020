// <studio-chart data="JSON of widgets/charts.py">: draws a chart and answers pointer and keys. Runs after chart_*.js, as
// one script in a gr.HTML (js_on_load). The chart is in a shadow root, since Gradio removes what it did not make itself.
// Zoom and cursor are kept by group: charts of a group share them, and they outlast updates.

const MIN_DRAG = 6;  // px; a shorter drag is a click
const MARK_DISTANCE = 5;  // px between cursor and the marks that it shows
const TOOLTIP_DISTANCE = 12;  // px
const KEY_ZOOM = 0.5;
const groups = new Map();
const charts = new Set();
const sheet = new CSSStyleSheet();
sheet.replaceSync(props.chart_css);
let made = 0;

class StudioChart extends HTMLElement {
  static observedAttributes = ['data'];

  connectedCallback() {
    charts.add(this);
    if (!this.shadowRoot) this.build();
    this.resizes.observe(this.plot);
    this.update();
  }

  disconnectedCallback() {
    charts.delete(this);
    this.resizes.disconnect();
  }

  attributeChangedCallback() {
    if (this.isConnected && this.shadowRoot) this.update();
  }

  build() {
    const root = this.attachShadow({ mode: 'open' });
    root.adoptedStyleSheets = [sheet];
    made += 1;
    this.id_ = `plot-${made}`;
    this.figure = node('figure', 'chart', root);
    const caption = node('figcaption', '', this.figure);
    this.heading = node('span', 'title', caption);
    this.reset = node('button', 'reset', caption, 'Reset zoom');
    this.reading = node('span', 'reading', caption);
    this.legend = node('span', 'legend', caption);
    this.plot = node('div', 'plot', this.figure);
    Object.entries({ tabindex: 0, role: 'application', 'aria-roledescription': 'chart' })
      .forEach(([name, value]) => this.plot.setAttribute(name, value));
    this.drawing = svg('svg', { class: 'drawing', 'aria-hidden': 'true' }, this.plot);
    this.tooltip = node('div', 'tooltip', this.plot);
    this.tooltip.hidden = true;
    this.note = node('p', 'note', this.figure);
    const foot = node('div', 'foot', this.figure);
    this.details = node('details', '', foot);
    node('summary', '', this.details, 'Show as table');
    this.table = node('div', 'table', this.details);
    this.table.tabIndex = 0;
    const downloads = node('span', 'downloads', foot, 'Download ');
    ['png', 'svg'].forEach((kind) => {
      const button = node('button', '', downloads, kind.toUpperCase());
      button.setAttribute('aria-label', `Download the chart as ${kind.toUpperCase()}`);
      button.addEventListener('click', () => downloadChart(this.figure, this.data.title, this.fileName, kind));
    });
    this.live = node('p', 'live', this.figure);
    this.live.setAttribute('aria-live', 'polite');
    this.listen();
    this.resizes = new ResizeObserver(() => this.draw());
  }

  listen() {
    const { plot } = this;
    plot.addEventListener('pointerdown', (event) => this.startDrag(event));
    plot.addEventListener('pointermove', (event) => this.movePointer(event));
    plot.addEventListener('pointerup', (event) => this.endDrag(event));
    plot.addEventListener('pointercancel', () => { this.drag = null; this.drawCursor(); });
    plot.addEventListener('pointerleave', (event) => this.leave(event));
    plot.addEventListener('dblclick', () => this.setZoom(null));
    plot.addEventListener('keydown', (event) => this.pressKey(event));
    plot.addEventListener('blur', () => this.setCursor(null));
    this.reset.addEventListener('click', () => { this.setZoom(null); this.plot.focus(); });
    this.details.addEventListener('toggle', () => this.fillTable());
  }

  get state() {
    const name = this.data.group;
    if (!groups.has(name)) groups.set(name, { zoom: null, cursor: null, owner: null });
    return groups.get(name);
  }

  get fileName() {
    return `${this.data.file} ${this.data.title}`.toLowerCase().replace(/[^a-z0-9]+/g, '-').replace(/^-|-$/g, '') || 'chart';
  }

  // The shown range of x: the zoom, as far as it is within the chart, or the whole chart.
  get domain() {
    const { zoom } = this.state;
    const [first, last] = this.data.x.domain;
    const cut = zoom && [Math.max(zoom[0], first), Math.min(zoom[1], last)];
    return cut && cut[0] < cut[1] ? cut : [first, last];
  }

  update() {
    this.data = JSON.parse(this.getAttribute('data'));
    const { data } = this;
    this.figure.classList.toggle('small', data.small);
    this.heading.textContent = data.title;
    this.reading.textContent = data.reading;
    this.reading.hidden = !data.reading;
    this.note.textContent = data.note;
    this.note.hidden = !data.note;
    this.details.hidden = !data.table;
    this.plot.setAttribute('aria-label', `${data.title}. ${data.summary} Arrow keys read the values, Home and End go to `
      + 'the ends, plus and minus zoom, Escape resets the zoom.');
    this.legend.replaceChildren();
    legendOf(data).forEach(({ text, shape }) => {
      const key = node('span', 'key', this.legend);
      shape(svg('svg', { width: 22, height: 12, 'aria-hidden': 'true' }, key));
      node('span', '', key, text);
    });
    this.draw();
    this.fillTable();
  }

  draw() {
    const size = { width: this.plot.clientWidth, height: this.plot.clientHeight };
    if (!size.width || !size.height) return;  // in a tab that is not shown
    this.reset.hidden = this.domain.every((limit, index) => limit === this.data.x.domain[index]);
    this.layout = layoutOf(this.data, this.domain, size);
    this.found = stops(this.data, this.domain);  // where the cursor can be
    this.drawing.replaceChildren();
    Object.entries(size).forEach(([name, value]) => this.drawing.setAttribute(name, value));
    drawChart(this.drawing, this.data, this.domain, this.layout, this.id_);
    this.cursor = svg('g', { class: 'cursor' }, this.drawing);
    this.drawCursor();
  }

  drawCursor() {
    if (!this.layout || !this.cursor) return;
    this.cursor.replaceChildren();
    const { left, top, width, height } = this.layout;
    if (this.drag?.isZoom) {
      const [from, to] = [this.drag.from, this.drag.to].sort((a, b) => a - b);
      svg('rect', { class: 'range', x: from, y: top, width: to - from, height }, this.cursor);
    }
    const { cursor } = this.state;
    const x = cursor === null ? NaN : this.layout.x(cursor);
    this.tooltip.hidden = !(x >= left - 1 && x <= left + width + 1);
    if (this.tooltip.hidden) return;
    svg('path', { class: 'hair', d: `M${short(x)} ${top}V${top + height}` }, this.cursor);
    this.data.series.filter((series) => ['line', 'level'].includes(series.kind)).forEach((series) => {
      const found = valueAt(this.data, series, cursor);
      const y = found.exact && isNumber(found.value) ? this.layout.y(found.value) : NaN;
      if (y >= top && y <= top + height) svg('circle', { class: `dot ${series.style}`, cx: x, cy: y, r: 4 }, this.cursor);
    });
    this.fillTooltip(cursor, x);
  }

  // [series, text] of the values at x, and the marks there. Where a series has texts, they are about the others too.
  readings(x) {
    const { data, layout } = this;
    const hasTexts = data.series.some((series) => series.texts);
    const values = data.series.filter((series) => series.texts || !hasTexts).map((series) => {
      const { text, at, exact, value } = valueAt(data, series, x);
      const place = !exact && value !== null && at !== undefined ? ` (${data.x.name} ${formatExact(at)})` : '';
      return [series, `${text}${place}`];
    });
    const near = (mark) => Math.abs(layout.x(mark.x) - layout.x(x)) <= MARK_DISTANCE;
    return { values, marks: data.marks.filter((mark) => mark.text && near(mark)) };
  }

  fillTooltip(cursor, x) {
    const { data, tooltip } = this;
    const { values, marks } = this.readings(cursor);
    const image = tooltip.querySelector('img');
    tooltip.replaceChildren();
    const isOwner = this.state.owner === this;
    if (isOwner) node('strong', '', tooltip, xText(data, cursor));
    const list = node('dl', '', tooltip);
    values.forEach(([series, text]) => {
      const name = node('dt', '', list, series.name);
      if (series.kind !== 'hidden') {
        const key = svg('svg', { width: 16, height: 8 });
        svg('path', { class: `line ${series.style} ${series.kind}`, d: 'M0 4H16' }, key);
        name.prepend(key);
      }
      node('dd', '', list, text);
    });
    if (isOwner) marks.forEach((mark) => node('p', 'mark-text', tooltip, mark.text));
    const sample = isOwner && data.samples[indexUpTo(data.samples.map((item) => item.x), cursor)];
    if (sample) {
      const shown = image?.getAttribute('src') === sample.url ? image : node('img', '');
      if (shown !== image) Object.assign(shown, { src: sample.url, alt: '' });
      tooltip.append(shown);
      node('p', 'hint', tooltip, `sample of ${data.x.name} ${formatExact(sample.x)}`);
    }
    const [width, room] = [tooltip.offsetWidth, this.plot.clientWidth];
    const beside = x > this.layout.left + this.layout.width / 2 ? x - TOOLTIP_DISTANCE - width : x + TOOLTIP_DISTANCE;
    tooltip.style.left = `${Math.max(0, Math.min(beside, room - width))}px`;
  }

  fillTable() {
    if (this.details.open && this.data.table) fillTable(this.table, this.data, this.domain);
  }

  eachOfGroup(action) {
    charts.forEach((chart) => { if (chart.data?.group === this.data.group) action(chart); });
  }

  setCursor(x) {
    Object.assign(this.state, { cursor: x, owner: x === null ? null : this });
    this.eachOfGroup((chart) => chart.drawCursor());
  }

  setZoom(range) {
    this.state.zoom = range;
    this.eachOfGroup((chart) => { chart.draw(); chart.fillTable(); });
  }

  stopNearest(px) {
    const { found } = this;
    const distance = (x) => Math.abs(this.layout.x(x) - px);
    return found.reduce((best, x) => (distance(x) < distance(best) ? x : best), found[0]);
  }

  placeOf(event) {
    const px = event.clientX - this.plot.getBoundingClientRect().left;
    const { left, width } = this.layout;
    return Math.min(Math.max(px, left), left + width);
  }

  startDrag(event) {
    if (event.button !== 0 || !this.layout) return;
    const px = this.placeOf(event);
    this.drag = { from: px, to: px, isZoom: false };
    if (event.pointerType !== 'touch') this.plot.setPointerCapture(event.pointerId);
  }

  movePointer(event) {
    if (!this.layout) return;
    const px = this.placeOf(event);
    if (this.drag) {
      this.drag.to = px;
      this.drag.isZoom = event.pointerType !== 'touch' && Math.abs(px - this.drag.from) >= MIN_DRAG;
    }
    const stop = this.stopNearest(px);
    if (stop !== undefined) this.setCursor(stop);
  }

  endDrag(event) {
    const { drag } = this;
    this.drag = null;
    if (!drag?.isZoom) { this.movePointer(event); return; }
    this.zoomTo([drag.from, drag.to].sort((a, b) => a - b).map((px) => this.layout.valueOf(px)));
  }

  // Hides the cursor, unless the keys moved it or a finger did, which leaves when it is lifted: then `blur` hides it.
  leave(event) {
    if (this.drag || event.pointerType === 'touch' || this.plot.matches(':focus-visible')) return;
    this.setCursor(null);
  }

  // Zooms to a range of x, if at least two values are within.
  zoomTo(range) {
    if (stops(this.data, range).length >= 2) this.setZoom(range);
    else this.drawCursor();
  }

  pressKey(event) {
    const name = window.studioKey('chart', event);
    if (!name || !this.layout) return;
    const { found } = this;
    const { cursor } = this.state;
    const place = cursor === null ? -1 : indexUpTo(found, cursor);
    const page = Math.max(1, Math.round(found.length / 10));
    const moves = {
      ArrowLeft: cursor === null ? found.length - 1 : place - 1,
      ArrowRight: place + 1,
      PageUp: place + page,
      PageDown: place - page,
      Home: 0,
      End: found.length - 1,
    };
    if (name in moves && found.length) {
      this.readOut(found[Math.min(Math.max(moves[name], 0), found.length - 1)]);
    } else if (name === 'Escape') {
      if (cursor === null && !this.state.zoom) return;
      this.setCursor(null);
      this.setZoom(null);
    } else if (name === '+' || name === '-') {
      this.zoomByKey(name === '+' ? KEY_ZOOM : 1 / KEY_ZOOM);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  zoomByKey(factor) {
    const { left, width, x, valueOf } = this.layout;
    const middle = this.state.cursor === null ? left + width / 2 : x(this.state.cursor);
    this.zoomTo([left, left + width].map((edge) => valueOf(middle + (edge - middle) * factor)));
  }

  // Moves the cursor, and has its values read by a screen reader.
  readOut(x) {
    this.setCursor(x);
    const { values, marks } = this.readings(x);
    const parts = [...values.map(([series, text]) => `${series.name} ${text}`), ...marks.map((mark) => mark.text)];
    this.live.textContent = `${xText(this.data, x)}: ${parts.join(', ')}`;
  }
}

if (!customElements.get('studio-chart')) customElements.define('studio-chart', StudioChart);
