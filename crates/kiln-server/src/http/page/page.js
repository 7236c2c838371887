// The page: what its parts do together.

import { call, json } from './api.js';
import * as form from './form.js';
import * as gallery from './gallery.js';
import * as jobs from './jobs.js';
import * as start from './start.js';

const $ = (id) => document.getElementById(id);
/** Milliseconds until the page looks for a server that was away when it was opened. */
const RETRY = 3000;
let isOnline = true;
let isSending = false;
let isReady = false;

const SAID = {
  queued: 'Waiting',
  loading: 'Loading the model',
  drawing: 'Drawing',
  decoding: 'Decoding',
  saving: 'Saving',
  done: 'Done',
  failed: 'Failed',
  cancelled: 'Cancelled',
};

function say(text) {
  if ($('status').textContent !== text) $('status').textContent = text;
}

function fail(error) {
  $('error').textContent = error?.message ?? '';
  $('error').hidden = !error;
}

/** Does something; what goes wrong becomes a line. */
async function attempt(action) {
  try {
    fail(null);
    return await action();
  } catch (error) {
    fail(error);
    return undefined;
  }
}

function changed(job, before) {
  gallery.show(job, before);
  if (job && before && job.status !== before.status) say(SAID[job.status] ?? '');
  const drawn = jobs.all().find((one) => one.status === 'drawing');
  document.title = drawn ? `${drawn.step}/${drawn.steps} · kiln` : 'kiln';
}

function connected(now) {
  if (now === isOnline) return;
  isOnline = now;
  document.body.classList.toggle('offline', !now);
  say(now ? 'Connected again' : 'The connection is lost; trying again');
  if (now) attempt(begin);
}

async function draw() {
  if (isSending) return;
  isSending = true;
  $('draw').setAttribute('aria-busy', 'true');
  await attempt(async () => {
    if (!isReady) await begin();
    const settings = form.read();
    const seed = form.seed();
    const job = await jobs.submit({ ...settings, ...(await start.read()) }, seed);
    form.showSeed(gallery.seedOf(job, 0));
    form.remember();
    gallery.reveal(job);
    say('Waiting');
  });
  $('draw').removeAttribute('aria-busy');
  isSending = false;
}

/** Asks what there is to choose from, and which jobs there are; tries again where the server is away. */
async function begin() {
  try {
    form.setOptions(await json('/v1/options'));
    await jobs.load();
  } catch (error) {
    if (!isReady && error.status === 0) setTimeout(() => attempt(begin), RETRY);
    throw error;
  }
  $('empty').hidden = jobs.all().length > 0;
  if (!isReady) say('Ready');
  isReady = true;
}

/** Fills the form in with a job's settings, or those of one of its pictures, pictures among them. */
async function again(job, index) {
  const settings = { ...job.settings };
  if (index !== null) Object.assign(settings, { n: 1, seed: gallery.seedOf(job, index) });
  await attempt(async () => {
    start.remove();
    form.fill(settings);
    if (settings.init_image) await start.set(await file(settings.init_image));
    if (settings.mask) await start.setMask(await file(settings.mask));
    if (settings.init_image) start.setStrength(settings.strength ?? (settings.mask ? 1 : 0.8));
    form.remember();
    if (!form.card(settings.model)) throw new Error(`The model ${settings.model} is not served any more`);
    say('The settings are in the form');
  });
  $('prompt').scrollIntoView({ block: 'nearest' });
  $('draw').focus();
}

async function file(path) {
  return (await call(path)).blob();
}

/** Starts from a picture of the gallery, at its own size. */
async function startFrom(job, index, paints) {
  await attempt(async () => {
    const { width, height } = await start.set(await file(job.pictures[index]));
    setSize(width, height);
    if (!$('prompt').value) form.fill({ ...job.settings, seed: undefined, n: 1, width, height });
  });
  if (paints) start.paint();
  else $('start').scrollIntoView({ block: 'nearest' });
}

/** Starts from a file; the size becomes the model's usual one in the picture's shape. */
async function startFromFile(given) {
  if (!given) return;
  await attempt(async () => {
    const usual = form.model();
    const { width, height } = await start.set(given, usual?.limits.side);
    if (!usual) return;
    const scale = Math.min(1, Math.sqrt((usual.width * usual.height) / (width * height)));
    const side = (value) => Math.min(usual.limits.side, Math.max(8, 8 * Math.round((value * scale) / 8)));
    setSize(side(width), side(height));
  });
}

function setSize(width, height) {
  $('width').value = width;
  $('height').value = height;
  form.remember();
}

/** Stops the job that was sent last. */
async function cancelNewest() {
  const job = jobs.all().find((one) => jobs.isLive(one) && !one.stopping);
  if (job) await attempt(() => jobs.cancel(job.id));
}

function isModal() {
  return document.querySelector('dialog[open]') !== null;
}

$('form').onsubmit = (event) => {
  event.preventDefault();
  draw();
};
document.addEventListener('keydown', (event) => {
  if (isModal() || event.isComposing) return;
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    draw();
  } else if (event.key === 'Escape' && !event.defaultPrevented) {
    cancelNewest();
  }
});
$('file').onchange = () => {
  startFromFile($('file').files[0]);
  $('file').value = '';
};
document.addEventListener('paste', (event) => {
  const given = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith('image/'));
  if (!given || isModal()) return;
  event.preventDefault();
  startFromFile(given);
});

let nInside = 0;
const holdsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');
const hint = (by) => {
  nInside = by === 0 ? 0 : nInside + by;
  $('drop-hint').hidden = nInside <= 0;
};
document.addEventListener('dragenter', (event) => holdsFile(event) && hint(1));
document.addEventListener('dragleave', (event) => holdsFile(event) && hint(-1));
document.addEventListener('dragover', (event) => holdsFile(event) && event.preventDefault());
document.addEventListener('drop', (event) => {
  hint(0);
  if (!holdsFile(event)) return;
  event.preventDefault();
  if (!isModal()) startFromFile(event.dataTransfer.files[0]);
});
document.addEventListener('visibilitychange', () => {
  if (!document.hidden && isOnline && isReady) jobs.load(true).catch(() => {});
});

gallery.setActions({ again, start: startFrom, fail });
jobs.watch(changed, connected);
await attempt(begin);
