// window.studioQueue(action): runs actions in order, each once the page has the answers to the requests before it. So no
// click is lost that comes during a request, and none acts on the image that was shown before it. An action that sends
// no request returns false.
// window.studioPress(send, press, isRepeat): the same for keys. Keys that wait one after another become one request:
// send(presses) gets them in order, so that ten keys take as long as one. With `isRepeat` (a key that is held down) the
// press is dropped instead of queued.

if (!window.studioQueue) {
  const MAX_WAIT_MS = 1000;  // until the loading bar shows that a request was sent
  const MAX_PRESSES = 500;  // of one request
  const queue = [];
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
    while (queue.length) {
      if (isBusy()) await until(() => !isBusy());
      const { action, presses } = queue.shift();
      if (action(presses) === false) continue;
      await until(isBusy, MAX_WAIT_MS);
      await until(() => !isBusy());
    }
    running = false;
  };
  const start = () => { if (!running) run(); };
  window.studioQueue = (action) => {
    queue.push({ action });
    start();
  };
  window.studioPress = (send, press, isRepeat = false) => {
    if (isRepeat && (running || isBusy())) return;
    const last = queue[queue.length - 1];
    if (last && last.action === send && last.presses.length < MAX_PRESSES) last.presses.push(press);
    else queue.push({ action: send, presses: [press] });
    start();
  };
}
