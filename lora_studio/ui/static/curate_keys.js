// Keys of Curate: the arrows choose a group or row, other keys press its button with that `data-key`. Most of them
// remove the chosen one; then the one that takes its place is chosen. Each press names the row that was chosen then.

window.studioCurateKeys ||= {};
window.studioCurateKeys.trigger = trigger;  // that of the component as it is now
if (!window.studioCurateKeys.send) {
  const undoRequest = () => document.querySelector('#dataset-message button[data-key="z"]')?.dataset.pick || '';
  window.studioCurateKeys.send = (presses) => window.studioCurateKeys.trigger('click', {
    presses: presses.map((press) => (press === 'z' ? `z:${undoRequest()}` : press)),
  });
  let chosen = -1;
  const rows = () => [...document.querySelectorAll('#dataset-groups .group, #dataset-flagged .entry')];
  const choose = (all, next) => {
    chosen = Math.max(0, Math.min(next, all.length - 1));
    all.forEach((row, index) => row.classList.toggle('here', index === chosen));
    if (all[chosen]) all[chosen].scrollIntoView({ block: 'nearest' });
  };
  const chooseNext = () => {
    if (chosen >= 0 && !document.querySelector('.here') && rows().length) choose(rows(), chosen);
  };
  const press = (event, name) => {
    if (name !== 'z' && chosen < 0) return;
    window.studioPress(window.studioCurateKeys.send, name === 'z' ? 'z' : `${name}:${chosen}`, event.repeat);
  };
  document.addEventListener('keydown', (event) => {
    const keys = document.querySelector('.curate-keys');
    const name = window.studioKey('curate', event);
    if (!name || window.studioIsTyping(event) || !keys || !keys.offsetParent) return;
    if (name === 'down' || name === 'up') {
      if (event.target.closest('[role="tab"]') || !rows().length) return;
      choose(rows(), chosen + (name === 'down' ? 1 : -1));
    } else press(event, name);
    event.preventDefault();
  });
  new MutationObserver(chooseNext).observe(document.body, { childList: true, subtree: true });
}
