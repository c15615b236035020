// A chart's figures as a <table>, of the range that is shown; long ones are thinned.

const MAX_ROWS = 40;  // evenly spaced; the values of sparse series and the marks come on top, as many again at most

const evenly = (values, most) => {
  if (values.length <= most) return values;
  return Array.from({ length: most }, (_, index) => values[Math.round(index * (values.length - 1) / (most - 1))]);
};

// The x of the rows, ascending.
const tableStops = (data, domain) => {
  const within = (xs) => xs.filter((x) => x >= domain[0] && x <= domain[1]);
  const series = data.series.filter((item) => item.kind !== 'level').map((item) => within(data.xs[item.x]));
  const [longest = []] = [...series].sort((a, b) => b.length - a.length);
  const sparse = [...series.filter((xs) => xs.length <= MAX_ROWS).flat(), ...within(data.marks.map((mark) => mark.x))];
  const rows = new Set([...evenly(longest, MAX_ROWS), ...evenly([...new Set(sparse)].sort((a, b) => a - b), MAX_ROWS)]);
  return { rows: [...rows].sort((a, b) => a - b), count: stops(data, domain).length };
};

const cellText = (data, series, x) => {
  const found = valueAt(data, series, x);
  if (!found.exact) return '';
  if (series.texts || !isNumber(found.value) || series.upper) return found.text;
  return formatExact(found.value);
};

// Fills `place` with the table.
const fillTable = (place, data, domain) => {
  place.replaceChildren();
  const { rows, count } = tableStops(data, domain);
  const table = node('table', '', place);
  const thinned = rows.length < count ? `: ${rows.length} of ${formatNumber(count)} rows` : '';
  node('caption', '', table, `${data.title}${data.y.unit ? ` (${data.y.unit})` : ''}${thinned}`);
  const head = node('tr', '', node('thead', '', table));
  const marks = data.marks.filter((mark) => mark.kind !== 'current');
  [data.x.name, ...data.series.map((series) => series.name), ...(marks.length ? ['marks'] : [])]
    .forEach((name) => { node('th', '', head, name).scope = 'col'; });
  const body = node('tbody', '', table);
  rows.forEach((x) => {
    const row = node('tr', '', body);
    const named = data.x.named.find((item) => item.x === x);
    node('th', '', row, named?.text ?? formatExact(x)).scope = 'row';
    data.series.forEach((series) => node('td', '', row, cellText(data, series, x)));
    if (marks.length) node('td', '', row, marks.filter((mark) => mark.x === x).map((mark) => mark.text).join(', '));
  });
};
