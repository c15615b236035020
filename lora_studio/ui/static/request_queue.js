// window.studioQueue(action): runs actions in order, each once the page has the answers to the requests before it. So no
// key is lost that is pressed during a request, and none acts on the image that was shown before it. An action that
// sends no request returns false. With `isRepeat` (a key that is held down) it is dropped instead of queued.

if (!window.studioQueue) {
  const MAX_WAIT_MS = 1000;  // until the loading bar shows that a request was sent
  const actions = [];
  let running = false;
  const isBusy = () => !!document.querySelector('#loading-bar .pending');
  const until = (condition, timeout) => new Promise((resume) => {
    const observer = new MutationObserver(() => condition() && finish());
    const timer = timeout && setTimeout(() => finish(), timeout);
    const finish = () => { observer.disconnect(); clearTimeout(timer); resume(); };
    observer.observe(document.getElementById('loading-bar'), { subtree: true, childList: true, attributes: true });
    if (condition()) finish();
  });
  const run = async () => {
    running = true;
    while (actions.length) {
      if (isBusy()) await until(() => !isBusy());
      if (actions.shift()() === false) continue;
      await until(isBusy, MAX_WAIT_MS);
      await until(() => !isBusy());
    }
    running = false;
  };
  window.studioQueue = (action, isRepeat = false) => {
    if (isRepeat && (running || isBusy())) return;
    actions.push(action);
    if (!running) run();
  };
}
