// The address names the selected tab (#train): a reload returns to it, and the browser's Back and Forward change tabs.

if (!window.studioTabHistory) {
  window.studioTabHistory = true;
  const tabs = () => [...document.querySelectorAll('.studio-tabs > .tab-wrapper [role="tab"][data-tab-id]')];
  const selected = () => tabs().find((tab) => tab.ariaSelected === 'true')?.dataset.tabId;
  const inAddress = () => location.hash.slice(1);
  let clicked = null;  // the tab that is about to be shown
  const show = () => {
    const tab = tabs().find((one) => one.dataset.tabId === inAddress());
    if (!tab || tab.ariaSelected === 'true') return false;
    clicked = inAddress();
    tab.click();
  };
  const record = () => {
    const shown = selected();
    if (clicked && shown !== clicked) return;
    clicked = null;
    if (!shown || shown === inAddress()) return;
    const isKnown = tabs().some((tab) => tab.dataset.tabId === inAddress());
    history[isKnown ? 'pushState' : 'replaceState'](null, '', `#${shown}`);
  };
  const observer = new MutationObserver(() => begin());
  const watch = () => observer.observe(document.body, {
    childList: true, subtree: true, attributeFilter: ['aria-selected'],
  });
  let begin = () => {
    if (!selected()) return;
    observer.disconnect();
    begin = record;
    window.studioQueue(() => {
      const sends = show();
      watch();
      record();
      return sends;
    });
  };
  addEventListener('popstate', show);
  watch();
  begin();
}
