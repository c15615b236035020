// Runs in a gr.HTML (js_on_load). The page's title has the percentage of the running job. When the run that Train shows
// ends, the title says so until the page is looked at, and a notification of the browser appears, if the button here was
// clicked and the browser allowed it.
const KEY = 'lora-studio-notify';
const TITLE = document.title;
const button = element.querySelector('[data-notify]');
const canNotify = 'Notification' in window;
const isOn = () => canNotify && Notification.permission === 'granted' && localStorage.getItem(KEY) === 'on';
let ended = '';
let last = { run: '', state: '' };

const label = () => {
  if (!canNotify) { button.hidden = true; return; }
  button.textContent = isOn() ? 'Do not notify me in this browser' : 'Notify me in this browser';
  button.setAttribute('aria-pressed', String(isOn()));
};
element.addEventListener('click', async (event) => {
  if (!event.target.closest('[data-notify]')) return;
  if (isOn()) localStorage.setItem(KEY, 'off');
  else if (await Notification.requestPermission() === 'granted') localStorage.setItem(KEY, 'on');
  else button.title = 'The browser blocks notifications of this page.';
  label();
});

const show = () => {
  const percent = document.querySelector('#job-pill')?.textContent.match(/\d+%/);
  const wanted = ended || (percent ? `${percent[0]} · ${TITLE}` : TITLE);
  if (document.title !== wanted) document.title = wanted;
};
const check = () => {
  const heading = document.querySelector('#train-title [data-run]');
  const now = heading ? { run: heading.dataset.run, state: heading.dataset.state } : last;
  const wasActive = ['running', 'queued'].includes(last.state);
  if (now.run === last.run && wasActive && ['finished', 'stopped', 'failed'].includes(now.state)) {
    if (!document.hasFocus()) ended = `${now.run} ${now.state} · ${TITLE}`;
    if (isOn()) new Notification(`${now.run} ${now.state}`, { body: TITLE, tag: now.run });
  }
  last = now;
  show();
};
window.addEventListener('focus', () => { ended = ''; show(); });
new MutationObserver(check).observe(document.body, { childList: true, subtree: true, characterData: true });
label();
check();
