// Numbers, ticks and places of a chart; no DOM. The chart_*.js files and chart.js run as one script.

const isNumber = (value) => typeof value === 'number';

// A step of 1, 2 or 5 times a power of ten that divides `span` into about `count`.
const niceStep = (span, count) => {
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5].find((factor) => power * factor >= rough) ?? 10);
};

const multiples = (low, high, step) => {
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) found.push(index * step);
  return found;
};

// 1,234 or 0.0123 or 1.5e-5: at most `digits` significant ones.
const formatNumber = (value, digits = 4) => {
  if (!isNumber(value)) return '–';
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return value.toLocaleString('en-US');
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e9) return value.toExponential(digits - 1).replace(/\.?0+e/, 'e').replace('e+', 'e');
  if (size >= 10 ** digits) return Math.round(value).toLocaleString('en-US');
  return value.toPrecision(digits);
};

// All digits of a value, up to 6 significant ones, without zeros at the end.
const formatExact = (value) => {
  if (!isNumber(value)) return '–';
  const size = Math.abs(value);
  if (!size) return '0';
  if (size < 1e-3 || size >= 1e9) return formatNumber(value, 6);
  return value.toLocaleString('en-US', { maximumSignificantDigits: Math.max(6, Math.ceil(Math.log10(size + 1))) });
};

// Rounded limits that contain `low` to `high`, with ticks.
const valueAxis = (low, high, count) => {
  const step = niceStep((high - low) || Math.abs(high) || 1, count);
  const bottom = Math.floor(low / step + 1e-9) * step;
  const top = Math.max(Math.ceil(high / step - 1e-9) * step, bottom + step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const text = (value) => {
    if (Math.abs(value) < step * 1e-6) return '0';
    if (digits > 3) return value.toExponential(1).replace('.0e', 'e');
    return value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
  };
  return { low: bottom, high: top, ticks: multiples(bottom, top, step).map((value) => ({ value, text: text(value) })) };
};

// Limits of the values within `domain`: of a robust series the 1st to 99th percentile, of a robust level none.
const valueLimits = (data, domain) => {
  const found = [];
  const counts = ({ kind, robust }) => kind !== 'hidden' && !(kind === 'level' && robust);
  data.series.filter(counts).forEach((series) => {
    const xs = data.xs[series.x];
    const seen = [...series.y, ...(series.upper ?? [])].filter((value, index) => {
      const x = xs[index % xs.length];
      return isNumber(value) && (series.kind === 'level' || (x >= domain[0] && x <= domain[1]));
    }).sort((a, b) => a - b);
    if (!seen.length) return;
    const cut = series.robust ? 0.01 : 0;
    found.push(seen[Math.floor(cut * seen.length)], seen[Math.min(seen.length - 1, Math.floor((1 - cut) * seen.length))]);
  });
  if (data.y.zero) found.push(0);
  if (!found.length) return [0, 1];
  const high = Math.max(...found);
  return [Math.min(...found), data.y.top ? Math.min(high, data.y.top) : high];
};

// Ticks of the horizontal axis, `width` px wide: { name, ticks: [{ value, text, line }] }.
const xTicks = (data, domain, width, place) => {
  const { named, epoch, name } = data.x;
  if (named.length) {
    const kept = [];
    const current = data.marks.find((mark) => mark.kind === 'current')?.x;
    const within = named.filter((item) => item.x >= domain[0] && item.x <= domain[1]);
    const order = [...within.filter((item) => item.x === current), ...within.slice(0, 1), ...within.slice(-1), ...within];
    order.forEach((item) => {
      const room = Math.max(26, item.label.length * 8);
      if (kept.every((other) => Math.abs(place(other.x) - place(item.x)) >= room)) kept.push(item);
    });
    kept.sort((a, b) => a.x - b.x);
    return { name, ticks: kept.map((item) => ({ value: item.x, text: item.label, line: false })) };
  }
  const most = Math.max(2, Math.floor(width / 64));
  const span = domain[1] - domain[0];
  if (epoch && span >= 2 * epoch) {
    const every = Math.ceil(niceStep(Math.max(span / epoch, 1), Math.min(12, most)) - 1e-9);
    const ticks = multiples(Math.max(domain[0], 1), domain[1], every * epoch);
    return { name: 'epoch', ticks: ticks.map((value) => ({ value, text: formatExact(value / epoch), line: true })) };
  }
  const step = Math.max(niceStep(span || 1, most), name === 'step' ? 1 : 0);
  const ticks = multiples(domain[0], domain[1], step).filter((value) => value > 0 || name !== 'step');
  return { name, ticks: ticks.map((value) => ({ value, text: formatExact(value), line: true })) };
};

// The index of the last x that is at most `value`; -1 if there is none.
const indexUpTo = (xs, value) => {
  let [low, high] = [0, xs.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
};

// What a series has at `x`: its value there, or the last one before, with the x that it is of.
const valueAt = (data, series, x) => {
  const xs = data.xs[series.x];
  const index = series.kind === 'level' ? 0 : indexUpTo(xs, x);
  if (index < 0) return { text: '–', value: null, exact: false };
  const [value, upper] = [series.y[index], series.upper?.[index]];
  const range = isNumber(upper) ? `${formatNumber(value)} to ${formatNumber(upper)}` : formatNumber(value);
  const text = series.texts?.[index] ?? (isNumber(value) ? range : 'not finite');
  const exact = series.kind === 'level' || xs[index] === x;
  return { text, value, at: xs[index], exact };
};

const xText = (data, x) => {
  const named = data.x.named.find((item) => item.x === x);
  if (named) return named.text;
  const epoch = data.x.epoch && x > 0 ? ` · epoch ${Math.ceil(x / data.x.epoch)}` : '';
  return `${data.x.name} ${formatExact(x)}${epoch}`;
};

// All x at which something can be read, ascending, within the domain.
const stops = (data, domain) => {
  const used = new Set(data.series.filter((series) => series.kind !== 'level').map((series) => series.x));
  const found = [...used].flatMap((index) => data.xs[index]).concat(data.marks.map((mark) => mark.x));
  return [...new Set(found)].filter((x) => x >= domain[0] && x <= domain[1]).sort((a, b) => a - b);
};
