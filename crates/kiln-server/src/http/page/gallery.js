// The gallery: a card for each job, and the viewer of a picture.

import { call } from './api.js';
import * as form from './form.js';
import * as jobs from './jobs.js';

const $ = (id) => document.getElementById(id);
/** Jobs that are shown at first, and how many more each time. */
const PAGE = 40;

const cards = new Map();
const files = new Map();
let nShown = PAGE;
let viewed = null;
let act = {};

/** Actions of buttons: `again(job, index)`, `start(job, index, paints)`, `fail(error)`. */
export function setActions(actions) {
  act = actions;
}

/** Shows a job anew, or takes it away where it is null. */
export function show(job, before) {
  const id = (job ?? before).id;
  if (!job) {
    cards.get(id)?.remove();
    cards.delete(id);
    forget(before);
  } else if (isSame(job, before)) {
    return;
  } else if (cards.has(id)) {
    render(cards.get(id), job, before);
  } else {
    place(job);
  }
  count();
}

/** Scrolls until a job can be seen, where it cannot. */
export function reveal(job) {
  cards.get(job.id)?.scrollIntoView({ block: 'nearest' });
}

/** The file of a picture, as an address for elements. */
export async function address(path) {
  if (!files.has(path)) {
    const file = call(path)
      .then((response) => response.blob())
      .then((blob) => URL.createObjectURL(blob));
    files.set(path, file);
    file.catch(() => files.delete(path));
  }
  return files.get(path);
}

/** The seed of a picture of a job, as digits. */
export function seedOf(job, index) {
  const first = job.settings?.seed ?? job.seeds[0] ?? 0;
  return String((BigInt(first) + BigInt(index)) % 2n ** 64n);
}

function isSame(job, before) {
  return before && JSON.stringify(job) === JSON.stringify(before) && cards.has(job.id);
}

function place(job) {
  const card = element('article', 'job');
  card.dataset.id = job.id;
  cards.set(job.id, card);
  render(card, job, null);
  const order = jobs.all();
  const after = order.slice(order.findIndex((other) => other.id === job.id) + 1).find((other) => cards.has(other.id));
  $('jobs').insertBefore(card, after ? cards.get(after.id) : null);
}

function count() {
  $('empty').hidden = cards.size > 0;
  [...$('jobs').children].forEach((card, i) => {
    card.hidden = i >= nShown;
  });
  $('more').hidden = cards.size <= nShown;
}

function forget(job) {
  for (const path of job.pictures ?? []) {
    files.get(path)?.then(URL.revokeObjectURL, () => {});
    files.delete(path);
  }
}

function render(card, job, before) {
  const isLive = jobs.isLive(job);
  if (before && isLive && jobs.isLive(before) && card.firstChild) return renderProgress(card, job);
  const focused = card.contains(document.activeElement);
  card.className = `job ${job.status}`;
  card.replaceChildren(isLive ? live(job) : outcome(job), words(job), actions(job));
  if (isLive) renderProgress(card, job);
  if (focused) card.querySelector('button')?.focus();
}

function live(job) {
  const box = element('div', 'live');
  const image = Object.assign(element('img', 'preview'), { alt: '' });
  image.hidden = true;
  const bar = Object.assign(document.createElement('progress'), { max: 1 });
  bar.setAttribute('aria-label', 'Progress');
  box.append(image, element('p', 'phase'), bar);
  return box;
}

function renderProgress(card, job) {
  const image = card.querySelector('.preview');
  if (job.preview && image.src !== job.preview) {
    image.src = job.preview;
    image.alt = 'Preview';
    image.hidden = false;
  }
  card.querySelector('.phase').textContent = phase(job);
  const bar = card.querySelector('progress');
  if (job.steps) bar.value = job.step / job.steps;
  else if (job.status === 'queued') bar.value = 0;
  else bar.removeAttribute('value');
  card.querySelector('.cancel').disabled = Boolean(job.stopping);
}

/** How far a job is, in a line. */
export function phase(job) {
  if (job.stopping) return 'Stopping';
  const time = job.remaining_seconds ? ` · about ${duration(job.remaining_seconds)}` : '';
  switch (job.status) {
    case 'queued':
      return `${waiting(job.position)}${time}`;
    case 'loading':
      return 'Loading the model';
    case 'drawing':
      return `Step ${job.step} of ${job.steps}${time}`;
    case 'decoding':
      return 'Decoding';
    default:
      return 'Saving';
  }
}

function waiting(position) {
  if (!position) return 'Next in the queue';
  return position === 1 ? '1 job ahead' : `${position} jobs ahead`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function outcome(job) {
  if (job.status === 'cancelled') return element('p', 'ended', 'Cancelled');
  if (job.status === 'failed') return element('p', 'ended error', job.error?.message ?? 'It failed');
  const tiles = element('div', `tiles n${Math.ceil(Math.sqrt(job.pictures.length))}`);
  tiles.append(...job.pictures.map((path, i) => tile(job, path, i)));
  return tiles;
}

function tile(job, path, index) {
  const button = Object.assign(element('button', 'tile'), { type: 'button' });
  const image = document.createElement('img');
  image.alt = `${job.settings?.prompt || 'Picture'} (${index + 1} of ${job.pictures.length})`;
  button.append(image);
  button.dataset.path = path;
  button.onclick = () => view(job.id, index);
  visible.observe(button);
  return button;
}

const visible = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      visible.unobserve(target);
      address(target.dataset.path).then(
        (url) => {
          target.firstChild.src = url;
        },
        () => target.classList.add('lost'),
      );
    }
  },
  { rootMargin: '600px' },
);

function words(job) {
  const box = element('div', 'words');
  const prompt = element('p', 'prompt', job.settings?.prompt || 'No prompt');
  const note = element('p', 'note', summary(job));
  [prompt.title, note.title] = [prompt.textContent, note.textContent];
  box.append(prompt, note);
  return box;
}

function summary(job) {
  const settings = { ...job.settings };
  const usual = form.card(settings.model) ?? {};
  const scheduler = settings.scheduler ?? usual.scheduler;
  return [
    `${settings.width ?? usual.width ?? '?'}×${settings.height ?? usual.height ?? '?'}`,
    `${settings.steps ?? usual.steps ?? '?'} steps`,
    scheduler,
    settings.mask ? 'inpainted' : settings.init_image && 'from a picture',
  ]
    .filter(Boolean)
    .join(' · ');
}

function actions(job) {
  const row = element('div', 'row actions');
  if (jobs.isLive(job)) {
    row.append(button('Cancel', () => jobs.cancel(job.id), 'cancel'));
  } else {
    row.append(
      button('Run again', () => act.again(jobs.get(job.id), null)),
      button('Delete', () => jobs.remove(job.id)),
    );
  }
  return row;
}

function button(text, action, name = '') {
  const made = Object.assign(element('button', name, text), { type: 'button' });
  made.onclick = async () => {
    try {
      await action();
    } catch (error) {
      act.fail(error);
    }
  };
  return made;
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Opens the viewer. */
async function view(id, index) {
  const job = jobs.get(id);
  if (!job?.pictures?.[index]) return;
  viewed = { id, index };
  $('view-image').alt = job.settings?.prompt || 'Picture';
  $('view-prompt').textContent = job.settings?.prompt || 'No prompt';
  $('view-facts').replaceChildren(
    ...facts(job, index).flatMap(([name, value]) => [element('dt', '', name), element('dd', '', value)]),
  );
  const all = pictures();
  const at = all.findIndex((one) => one.id === id && one.index === index);
  $('previous').disabled = at <= 0;
  $('next').disabled = at + 1 >= all.length;
  if (!$('viewer').open) $('viewer').showModal();
  try {
    const url = await address(job.pictures[index]);
    if (viewed?.id !== id || viewed.index !== index) return;
    $('view-image').src = $('view-open').href = $('view-save').href = url;
    $('view-save').download = `${id.slice(0, 8)}-${seedOf(job, index)}.png`;
  } catch (error) {
    $('viewer').close();
    act.fail(error);
  }
}

function pictures() {
  return jobs.all().flatMap((job) => (job.pictures ?? []).map((_, index) => ({ id: job.id, index })));
}

function turn(by) {
  const all = pictures();
  const at = all.findIndex((one) => one.id === viewed?.id && one.index === viewed.index);
  const to = all[at + by];
  if (to) view(to.id, to.index);
}

function facts(job, index) {
  const settings = { ...job.settings };
  const usual = form.card(settings.model) ?? {};
  const loras = Object.entries(settings.loras ?? {})
    .map(([name, weight]) => `${name} ${weight}`)
    .join(', ');
  const took = job.ended > job.created ? duration(job.ended - job.created) : null;
  return [
    ['Negative', settings.negative_prompt],
    ['Model', usual.title ?? settings.model],
    ['Seed', seedOf(job, index)],
    ['Size', `${settings.width ?? usual.width} × ${settings.height ?? usual.height}`],
    ['Steps', settings.steps ?? usual.steps],
    ['Guidance', settings.guidance_scale ?? usual.guidance_scale],
    ['Sampler', settings.scheduler ?? "the model's own"],
    ['LoRAs', loras],
    ['Strength', settings.init_image && (settings.strength ?? 'as usual')],
    ['Mask', settings.mask && 'yes'],
    ['Drawn', new Date(job.created * 1000).toLocaleString()],
    ['Ready after', took],
  ].filter(([, value]) => value !== undefined && value !== null && value !== '');
}

/** Closes the viewer and does something with its picture. */
function leave(action) {
  return async () => {
    const { id, index } = viewed;
    $('viewer').close();
    try {
      await action(jobs.get(id), index);
    } catch (error) {
      act.fail(error);
    }
  };
}

$('view-again').onclick = leave((job, index) => act.again(job, index));
$('view-start').onclick = leave((job, index) => act.start(job, index, false));
$('view-mask').onclick = leave((job, index) => act.start(job, index, true));
$('view-delete').onclick = leave((job) => jobs.remove(job.id));
$('view-close').onclick = () => $('viewer').close();
$('previous').onclick = () => turn(-1);
$('next').onclick = () => turn(1);
$('viewer').addEventListener('keydown', (event) => {
  if (event.key === 'ArrowLeft') turn(-1);
  if (event.key === 'ArrowRight') turn(1);
});
$('viewer').addEventListener('click', (event) => {
  if (event.target === $('viewer')) $('viewer').close();
});
$('more').onclick = () => {
  nShown += PAGE;
  count();
};
