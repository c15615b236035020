// Escape closes the Projects menu and returns the focus to its button, which says whether the menu is open.

if (!window.studioProjectMenu) {
  window.studioProjectMenu = true;
  const button = () => document.getElementById('project-menu-button');
  const isOpen = () => !!document.querySelector('.project-menu')?.offsetParent;
  const inList = (event) => event.target.getAttribute?.('aria-expanded') === 'true' && event.target !== button();
  document.addEventListener('keydown', (event) => {
    if (!window.studioKey('menu', event) || !isOpen() || inList(event)) return;
    if (event.defaultPrevented || document.querySelector('.lightbox, [popover]:popover-open')) return;
    event.preventDefault();
    button().click();
    button().focus();
  });
  const show = () => {
    const expanded = String(isOpen());
    if (button() && button().ariaExpanded !== expanded) button().ariaExpanded = expanded;
  };
  new MutationObserver(show).observe(document.body, { childList: true, subtree: true, attributeFilter: ['class', 'style'] });
}
