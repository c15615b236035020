// Runs in the gr.HTML of the guide's panel: a link to a place in the page opens the folds around it and leads there.
if (!window.studioGuideLinks) {
  window.studioGuideLinks = true;
  document.addEventListener('click', (event) => {
    const link = event.target.closest('a[href^="#"]');
    const target = link && document.getElementById(link.hash.slice(1));
    if (!target) return;
    event.preventDefault();
    for (let place = target; place; place = place.parentElement) {
      if (place.tagName === 'DETAILS') place.open = true;
    }
    target.scrollIntoView({ block: 'start' });
    target.querySelector(':scope > summary')?.focus({ preventScroll: true });
  });
}
