// A chart as a picture file: what is shown, with title and legend, as SVG or PNG.

const PNG_SCALE = 2;  // px of the PNG per px of the page
const PADDING = 14;
const HEADER = 28;  // px of the title
const KEY_HEIGHT = 20;
const STYLES = ['fill', 'fill-opacity', 'stroke', 'stroke-width', 'stroke-dasharray', 'stroke-linejoin', 'stroke-opacity',
  'opacity', 'font-family', 'font-size', 'font-weight', 'text-anchor'];

// A copy of an SVG element that looks the same without the style sheet.
const styledCopy = (shown) => {
  const copy = shown.cloneNode(true);
  const originals = [shown, ...shown.querySelectorAll('*')];
  [copy, ...copy.querySelectorAll('*')].forEach((part, index) => {
    const style = getComputedStyle(originals[index]);
    STYLES.forEach((name) => part.setAttribute(name, style.getPropertyValue(name)));
    part.removeAttribute('class');
  });
  return copy;
};

// The picture of a chart: `figure` is the shown one with its <svg class="drawing"> and its legend.
const pictureOf = (figure, title) => {
  const drawing = figure.querySelector('svg.drawing');
  const width = drawing.width.baseVal.value + 2 * PADDING;
  const style = getComputedStyle(figure);
  const text = { fill: style.color, 'font-family': style.fontFamily, 'font-size': '12px' };
  const picture = svg('svg', { xmlns: SVG });
  const background = svg('rect', { x: 0, y: 0, fill: style.backgroundColor }, picture);
  svg('text', { ...text, x: PADDING, y: PADDING + 12, 'font-size': '15px', 'font-weight': 600 }, picture, title);
  let [x, y] = [PADDING, PADDING + HEADER];
  figure.querySelectorAll('.key').forEach((key) => {
    const room = key.getBoundingClientRect().width + 16;
    if (x > PADDING && x + room > width - PADDING) [x, y] = [PADDING, y + KEY_HEIGHT];
    const sample = styledCopy(key.querySelector('svg'));
    Object.entries({ x, y: y - 2, width: 22, height: 12 }).forEach(([name, value]) => sample.setAttribute(name, value));
    picture.append(sample);
    svg('text', { ...text, x: x + 28, y: y + 8 }, picture, key.textContent);
    x += room;
  });
  const copy = styledCopy(drawing);
  copy.querySelector('.cursor')?.remove();
  copy.setAttribute('x', PADDING);
  copy.setAttribute('y', x > PADDING ? y + KEY_HEIGHT : y);
  picture.append(copy);
  const height = Number(copy.getAttribute('y')) + drawing.height.baseVal.value + PADDING;
  [picture, background].forEach((part) => { part.setAttribute('width', width); part.setAttribute('height', height); });
  return { markup: new XMLSerializer().serializeToString(picture), width, height };
};

const save = (blob, name) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};

const downloadChart = async (figure, title, name, kind) => {
  const { markup, width, height } = pictureOf(figure, title);
  if (kind === 'svg') { save(new Blob([markup], { type: 'image/svg+xml' }), `${name}.svg`); return; }
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(markup)}`;
  await image.decode();
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [width * PNG_SCALE, height * PNG_SCALE];
  canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => save(blob, `${name}.png`), 'image/png');
};
