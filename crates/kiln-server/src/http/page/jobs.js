// The jobs: which there are, and how far they are.

import { call, events, json } from './api.js';

/** Browsers open six connections to a server; these leave room for all else. */
const MAX_STREAMS = 3;
const POLL = 2000;
const PAUSES = [500, 8000];

const known = new Map();
const streams = new Map();
let changed = () => {};
let connected = () => {};

/** Calls `onChange(job, before)` when a job is another one than before (null where it is gone), `onLine(isOnline)` when streams break. */
export function watch(onChange, onLine) {
  changed = onChange;
  connected = onLine;
  setTimeout(poll, POLL);
}

/** A job by its name. */
export function get(id) {
  return known.get(id);
}

/** All jobs, the newest first. */
export function all() {
  return [...known.values()].sort((a, b) => b.created - a.created || b.order - a.order);
}

/** Whether a job may still change. */
export function isLive(job) {
  return job.ended === undefined;
}

/** Asks for the jobs of this client. */
export async function load() {
  const { jobs } = await json('/v1/jobs');
  const listed = new Set(jobs.map((job) => job.id));
  for (const id of [...known.keys()]) if (!listed.has(id) && jobs.length < 200) drop(id);
  jobs.reverse().forEach(update);
  follow();
}

/** Sends a job; a seed of any length is told as digits. */
export async function submit(settings, seed) {
  const text = JSON.stringify(settings);
  const body = seed ? `${text.slice(0, -1)},"seed":${BigInt(seed)}}` : text;
  const headers = { 'Content-Type': 'application/json', 'Idempotency-Key': key() };
  const send = () => json('/v1/jobs', { method: 'POST', headers, body });
  // Sent again under the same key, it is drawn once.
  const job = await send().catch((error) => (error.status === 0 ? sleep(1000).then(send) : Promise.reject(error)));
  update(job);
  follow();
  return job;
}

/** Stops a job. */
export async function cancel(id) {
  const job = known.get(id);
  if (!job || !isLive(job) || job.stopping) return;
  set(id, { ...job, stopping: true });
  await call(`/v1/jobs/${id}/cancel`, { method: 'POST' }).catch((error) => {
    if (error.status !== 409) {
      set(id, { ...known.get(id), stopping: false });
      throw error;
    }
  });
}

/** Stops a job and lets the server forget it. */
export async function remove(id) {
  await call(`/v1/jobs/${id}`, { method: 'DELETE' }).catch((error) => {
    if (error.status !== 404) throw error;
  });
  drop(id);
}

let order = 0;

function update(view) {
  const before = known.get(view.id);
  const kept = before && { settings: before.settings, preview: before.preview, stopping: before.stopping };
  set(view.id, { order: before?.order ?? order++, ...kept, ...view });
}

function set(id, job) {
  const before = known.get(id);
  known.set(id, job);
  changed(job, before);
}

function drop(id) {
  const before = known.get(id);
  if (!known.delete(id)) return;
  streams.get(id)?.abort();
  changed(null, before);
}

/** Opens streams for the jobs that are drawn first. */
function follow() {
  for (const job of all().reverse().filter(isLive)) {
    if (streams.size >= MAX_STREAMS) return;
    if (!streams.has(job.id)) stream(job.id);
  }
}

async function stream(id) {
  const control = new AbortController();
  streams.set(id, control);
  let pause = PAUSES[0];
  while (known.has(id) && isLive(known.get(id))) {
    try {
      for await (const [name, data] of events(`/v1/jobs/${id}/events`, control.signal)) {
        connected(true);
        pause = PAUSES[0];
        if (!known.has(id)) break;
        if (name === 'preview') set(id, { ...known.get(id), preview: `data:image/png;base64,${data.png}` });
        else update(data);
      }
    } catch (error) {
      if (error.status === 404) drop(id);
      if (control.signal.aborted || error.status === 401) break;
      connected(false);
    }
    if (known.has(id) && isLive(known.get(id))) {
      await sleep(pause);
      pause = Math.min(2 * pause, PAUSES[1]);
    }
  }
  streams.delete(id);
  follow();
}

/** Looks after the jobs that have no stream. */
async function poll() {
  const waiting = all().reverse().filter((job) => isLive(job) && !streams.has(job.id));
  for (const { id } of waiting) {
    try {
      update(await json(`/v1/jobs/${id}`));
    } catch (error) {
      if (error.status === 404) drop(id);
      else break;
    }
  }
  setTimeout(poll, POLL);
}

function key() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

function sleep(milliseconds) {
  return new Promise((resolve) => { setTimeout(resolve, milliseconds); });
}
