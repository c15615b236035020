// Gradio's upload buttons show nothing while files are on their way. Here such a button says so until the page sends the
// request that handles them, or shows an error.

if (!window.studioUploads) {
  window.studioUploads = true;
  const done = (button) => {
    delete button.dataset.uploading;
    button.removeAttribute('aria-busy');
  };
  const hasEnded = () => !!document.querySelector('#loading-bar .pending, .toast-body');
  document.addEventListener('change', ({ target }) => {
    const button = target.type === 'file' && target.files.length ? target.nextElementSibling : null;
    if (!button || !button.matches('button[id]')) return;
    button.dataset.uploading = target.files.length === 1 ? 'uploading' : `uploading ${target.files.length} files`;
    button.setAttribute('aria-busy', 'true');
    const observer = new MutationObserver(() => {
      if (!hasEnded()) return;
      observer.disconnect();
      done(button);
    });
    observer.observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ['class'] });
  }, { capture: true });
}
