// Runs in the gr.HTML of charts over one variable: pointing at a value in one shows its figures in all.
const show = (index) => {
  element.querySelectorAll('.column').forEach((column) => {
    column.classList.toggle('here', column.dataset.column === index);
  });
  element.querySelectorAll('.reading').forEach((reading) => {
    const column = reading.closest('figure').querySelector('.column.here');
    reading.textContent = column ? column.dataset.text : reading.dataset.reading;
  });
};
element.addEventListener('pointerover', (event) => show(event.target.closest('.column')?.dataset.column));
element.addEventListener('pointerleave', () => show(undefined));
