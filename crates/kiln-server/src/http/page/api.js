// The server: requests with the API key, and streams of events.

const KEY = 'kiln-key';
const $ = (id) => document.getElementById(id);
let asking = null;

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Sends a request and gives the response; fails with one line for people. Asks for the API key where one is needed. */
export async function call(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers };
    if (key) headers.Authorization = `Bearer ${key}`;
    const response = await send(path, { ...options, headers });
    if (response.ok) return response;
    if (response.status !== 401) throw await failure(response);
    // Another request may have asked in the meantime.
    if (key === sessionStorage.getItem(KEY)) await (asking ??= ask(key !== null).finally(() => { asking = null; }));
  }
}

/** A JSON answer. Seeds beyond what JavaScript's numbers hold stay text. */
export async function json(path, options) {
  const text = await (await call(path, options)).text();
  return JSON.parse(text.replace(/"seed":(\d{16,})/g, '"seed":"$1"'));
}

/** Events of a stream as [name, data], until it ends or breaks. */
export async function* events(path, signal) {
  const response = await call(path, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split('\n\n');
    text = blocks.pop();
    for (const block of blocks) yield parse(block);
  }
}

function parse(block) {
  const of = (name) => block.split('\n').filter((line) => line.startsWith(`${name}: `)).map((line) => line.slice(name.length + 2));
  return [of('event')[0] ?? 'message', JSON.parse(of('data').join('\n') || 'null')];
}

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('The server cannot be reached', 0);
  }
}

async function failure(response) {
  const body = await response.json().catch(() => null);
  let message = body?.error?.message ?? `The server answered ${response.status}`;
  const after = response.headers.get('retry-after');
  if (after) message += ` (in about ${after} s)`;
  return new ApiError(message, response.status);
}

/** Asks for the key. */
function ask(wasWrong) {
  const dialog = $('key-dialog');
  $('key').value = '';
  $('key-error').textContent = 'This key does not open the server';
  $('key-error').hidden = !wasWrong;
  return new Promise((resolve, reject) => {
    const refuse = () => dialog.close('');
    $('key-cancel').onclick = refuse;
    $('key-form').onsubmit = (event) => {
      event.preventDefault();
      const key = $('key').value.trim();
      if (key && /^[\x21-\x7e]+$/.test(key)) dialog.close(key);
    };
    dialog.onclose = () => {
      if (!dialog.returnValue) return reject(new ApiError('An API key is needed', 401));
      sessionStorage.setItem(KEY, dialog.returnValue);
      resolve();
    };
    dialog.returnValue = '';
    dialog.showModal();
  });
}
