// The SVG of a chart, in px, from its data. Text is set as text, never as HTML.

const SVG = 'http://www.w3.org/2000/svg';
const MAX_DOTS = 40;  // of a series with dots, above which they would touch
const MARKS = {
  checkpoint: { name: 'checkpoint', path: 'M0 -5L5 4H-5Z', edge: 'bottom' },
  verdict: { name: 'verdict', path: 'M0 -5L5 0L0 5L-5 0Z', edge: 'top' },
  resume: { name: 'resumed', path: 'M-4 -4L4 0L-4 4Z', edge: 'top', line: true },
  best: { name: 'best', path: 'M0 -6L1.8 -2L6 -1.9L2.8 1L3.9 5.5L0 3L-3.9 5.5L-2.8 1L-6 -1.9L-1.8 -2Z', edge: 'top' },
  current: { name: '', path: '', edge: 'top', line: true },
  recommended: { name: 'recommended', path: 'M-6 -6H6L0 5Z', edge: 'top' },
};

const svg = (tag, attributes, parent, text) => {
  const made = document.createElementNS(SVG, tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
};

const node = (tag, className, parent, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
};

const short = (value) => Math.round(value * 100) / 100;

// Places of a chart of a size: left, top, width and height of the plot, x(value), y(value), valueOf(px) and the ticks.
const layoutOf = (data, domain, size) => {
  const values = valueAxis(...valueLimits(data, domain), size.height > 200 ? 5 : 3);
  const left = 12 + 6.4 * Math.max(...values.ticks.map((tick) => tick.text.length), data.y.unit.length);
  const plot = { left, top: 8, width: Math.max(size.width - left - 12, 20), height: size.height - 48 };
  const scaled = data.x.log ? Math.log : (value) => value;
  const [first, last] = domain.map(scaled);
  const span = (last - first) || 1;
  const x = (value) => plot.left + plot.width * (scaled(value) - first) / span;
  const y = (value) => plot.top + plot.height * (1 - (value - values.low) / (values.high - values.low));
  const valueOf = (px) => {
    const place = first + span * (px - plot.left) / plot.width;
    return data.x.log ? Math.exp(place) : place;
  };
  return { ...plot, x, y, valueOf, values, axis: xTicks(data, domain, plot.width, x) };
};

const drawAxes = (root, data, layout) => {
  const { left, top, width, height } = layout;
  const [right, bottom] = [left + width, top + height];
  layout.values.ticks.forEach((tick) => {
    const place = short(layout.y(tick.value));
    svg('path', { class: 'grid', d: `M${left} ${place}H${right}` }, root);
    svg('text', { class: 'tick', x: left - 6, y: place + 4, 'text-anchor': 'end' }, root, tick.text);
  });
  layout.axis.ticks.forEach((tick) => {
    const place = short(layout.x(tick.value));
    if (tick.line) svg('path', { class: 'grid', d: `M${place} ${top}V${bottom}` }, root);
    svg('text', { class: 'tick', x: place, y: bottom + 16, 'text-anchor': 'middle' }, root, tick.text);
  });
  svg('text', { class: 'tick', x: right, y: bottom + 33, 'text-anchor': 'end' }, root, layout.axis.name);
  if (data.y.unit) svg('text', { class: 'tick', x: left - 6, y: bottom + 16, 'text-anchor': 'end' }, root, data.y.unit);
};

const linePath = (points, layout) => {
  let pen = 'M';
  return points.map(([x, value]) => {
    if (!isNumber(value)) { pen = 'M'; return ''; }
    const piece = `${pen}${short(layout.x(x))} ${short(layout.y(value))}`;
    pen = 'L';
    return piece;
  }).join('');
};

const drawSeries = (root, data, series, layout) => {
  const xs = data.xs[series.x];
  const points = xs.map((x, index) => [x, series.y[index]]);
  const finite = points.filter(([, value]) => isNumber(value));
  const line = (d, classes = '') => d && svg('path', { class: `line ${series.style} ${classes}`, d }, root);
  if (series.kind === 'hidden' || !finite.length) return;
  if (series.kind === 'level') line(`M${layout.left} ${short(layout.y(series.y[0]))}h${layout.width}`);
  else if (series.kind === 'band') {
    const upper = xs.map((x, index) => [x, series.upper[index]]);
    line(`${linePath([...points, ...upper.reverse()], layout)}Z`, 'band');
  } else if (series.kind === 'bar' || series.kind === 'stairs') {
    const half = series.kind === 'bar' ? 0.35 : 0.5;
    finite.forEach(([x, value]) => {
      const [start, end, y] = [layout.x(x - half), layout.x(x + half), layout.y(value)].map(short);
      if (series.kind === 'stairs') line(`M${start} ${y}H${end}`);
      else line(`M${start} ${short(layout.y(0))}V${y}H${end}V${short(layout.y(0))}Z`, 'bar');
    });
  } else {
    line(linePath(points, layout));
    const isAlone = finite.length === 1;
    if (isAlone || (series.points && finite.length <= MAX_DOTS)) {
      finite.forEach(([x, value]) => svg('circle', {
        class: `dot ${series.style}`, cx: short(layout.x(x)), cy: short(layout.y(value)), r: 3,
      }, root));
    }
  }
};

const drawMark = (root, mark, layout) => {
  const shape = MARKS[mark.kind];
  const x = short(layout.x(mark.x));
  const edge = shape.edge === 'top' ? layout.top + 6 : layout.top + layout.height - 6;
  const y = short(isNumber(mark.y) ? layout.y(mark.y) : edge);
  if (shape.line) svg('path', { class: `rule ${mark.kind}`, d: `M${x} ${layout.top}V${layout.top + layout.height}` }, root);
  if (isNumber(mark.low) && isNumber(mark.high) && mark.low < mark.high) {
    const ends = [mark.low, mark.high].map((end) => short(layout.x(end)));
    const caps = ends.map((end) => `M${end} ${y - 4}V${y + 4}`).join('');
    svg('path', { class: `spread ${mark.kind}`, d: `M${ends[0]} ${y}H${ends[1]}${caps}` }, root);
  }
  if (shape.path) svg('path', { class: `mark ${mark.kind}`, d: shape.path, transform: `translate(${x} ${y})` }, root);
};

// Draws the chart into `root`, an empty <svg>; lines are clipped at the edges of the plot.
const drawChart = (root, data, domain, layout, id) => {
  drawAxes(root, data, layout);
  const { left, top, width, height } = layout;
  const clip = svg('clipPath', { id }, svg('defs', {}, root));
  svg('rect', { x: left - 4, y: top - 4, width: width + 8, height: height + 8 }, clip);  // room for dots at the ends
  const plot = svg('g', { 'clip-path': `url(#${id})` }, root);
  const rank = ({ kind }) => ['band', 'bar'].indexOf(kind);
  [...data.series].sort((a, b) => rank(b) - rank(a)).forEach((series) => drawSeries(plot, data, series, layout));
  data.marks.filter((mark) => mark.x >= domain[0] && mark.x <= domain[1])
    .forEach((mark) => drawMark(root, mark, layout));
};

// The entries of the legend: { text, shape(parent) }, which draws a sample of 22 x 12 px.
const legendOf = (data) => {
  const drawn = data.series.filter((series) => series.kind !== 'hidden');
  const kinds = [...new Set(data.marks.map((mark) => mark.kind))].filter((kind) => MARKS[kind].name);
  const entries = drawn.length + kinds.length < 2 ? [] : drawn.map((series) => ({
    text: series.name,
    shape: (parent) => {
      const filled = { band: 'M0 1H22V11H0Z', bar: 'M4 1H18V11H4Z' }[series.kind];
      svg('path', { class: `line ${series.style} ${filled ? series.kind : ''}`, d: filled ?? 'M0 6H22' }, parent);
      if (series.points) svg('circle', { class: `dot ${series.style}`, cx: 11, cy: 6, r: 3 }, parent);
    },
  }));
  const marks = kinds.map((kind) => ({
    text: kind === 'best' ? data.marks.find((mark) => mark.kind === kind).text : MARKS[kind].name,
    shape: (parent) => svg('path', { class: `mark ${kind}`, d: MARKS[kind].path, transform: 'translate(11 6)' }, parent),
  }));
  return [...entries, ...marks];
};
