// The form: what to draw.

import * as start from './start.js';

const $ = (id) => document.getElementById(id);
const STORED = 'kiln-form';
/** What other clients may set and the form has no field for, with what means that it is not set. */
const EXTRAS = { guidance_rescale: 0, guidance_start: 0, guidance_end: 1, deep_every: 1, eta: 0, clip_skip: 0, hires: null };
const EXTRA_NAMES = { guidance_rescale: 'guidance rescale', guidance_start: 'guidance from', guidance_end: 'guidance until', deep_every: 'deep layers every', eta: 'eta', clip_skip: 'clip skip', hires: 'second pass' };

let options = { models: [] };
let extras = {};
let shown = null;

/** The model that is chosen. */
export function model() {
  return options.models.find((model) => model.name === $('model').value) ?? options.models[0];
}

/** The card of a model. */
export function card(name) {
  return options.models.find((model) => model.name === name);
}

/** Takes what can be chosen from, and fills in what was in the form last. */
export function setOptions(found) {
  options = found;
  const chosen = $('model').value;
  $('model').replaceChildren(...options.models.map((model) => new Option(model.title, model.name)));
  if (card(chosen)) $('model').value = chosen;
  const stored = shown ? null : restored();
  changeModel();
  if (stored) fill(stored);
}

/** Fills the form in with settings; what they leave open is the model's default. Pictures are `start`'s. */
export function fill(settings) {
  const served = card(settings.model);
  if (served) $('model').value = served.name;
  changeModel();
  const usual = model();
  if (!usual) return;
  $('prompt').value = settings.prompt ?? '';
  $('negative').value = settings.negative_prompt ?? '';
  $('width').value = settings.width ?? usual.width;
  $('height').value = settings.height ?? usual.height;
  $('steps').value = settings.steps ?? usual.steps;
  $('guidance').value = settings.guidance_scale ?? usual.guidance_scale;
  $('count').value = settings.n ?? 1;
  chooseScheduler(settings.scheduler ?? usual.scheduler ?? '');
  setSeed(settings.seed ?? '', settings.keep ?? settings.seed !== undefined);
  $('lora-list').replaceChildren();
  for (const [name, weight] of Object.entries(settings.loras ?? {})) addLora(name, weight);
  if (settings.strength !== undefined) start.setStrength(settings.strength);
  setExtras(settings);
  grow();
}

/** What the form says, as `POST /v1/jobs` takes it; the pictures are missing. */
export function read() {
  const settings = {
    model: model()?.name,
    prompt: $('prompt').value,
    negative_prompt: $('negative').value,
    n: whole('count', 'Pictures'),
    width: whole('width', 'Width'),
    height: whole('height', 'Height'),
    steps: whole('steps', 'Steps'),
    guidance_scale: number('guidance', 'Guidance'),
    loras: Object.fromEntries([...$('lora-list').children].map(lora)),
    ...extras,
  };
  const scheduler = [$('sampler').value, $('sigmas').value].filter(Boolean).join(':');
  if (scheduler) settings.scheduler = scheduler;
  return settings;
}

/** The seed to draw with, as digits; empty for a new one. */
export function seed() {
  const digits = $('keep').checked ? $('seed').value.trim() : '';
  if (digits && (!/^\d{1,20}$/.test(digits) || BigInt(digits) >= 2n ** 64n)) {
    throw new Error('Seed: not a whole number below 2 to the power of 64');
  }
  return digits;
}

/** Shows the seed that something is drawn with. */
export function showSeed(digits) {
  if (!$('keep').checked) $('seed').value = digits;
}

/** Remembers the form for the next visit. */
export function remember() {
  try {
    localStorage.setItem(STORED, JSON.stringify({ ...read(), seed: $('seed').value, keep: $('keep').checked }));
  } catch {
    // Half filled in, or the browser stores nothing.
  }
}

function restored() {
  try {
    return JSON.parse(localStorage.getItem(STORED));
  } catch {
    return null;
  }
}

function number(id, name) {
  const value = $(id).valueAsNumber;
  if (!Number.isFinite(value)) throw new Error(`${name}: not a number`);
  return value;
}

function whole(id, name) {
  const value = number(id, name);
  if (!Number.isInteger(value) || value < 1) throw new Error(`${name}: not a whole number from 1`);
  return value;
}

function lora(item) {
  const weight = item.querySelector('input').valueAsNumber;
  if (!Number.isFinite(weight)) throw new Error(`${item.dataset.name}: the weight is not a number`);
  return [item.dataset.name, weight];
}

/** Shows what the chosen model allows; values that were the last one's defaults become this one's. */
function changeModel() {
  const usual = model();
  if (!usual || shown === usual) return;
  for (const [id, key] of [
    ['width', 'width'],
    ['height', 'height'],
    ['steps', 'steps'],
    ['guidance', 'guidance_scale'],
  ]) {
    if (!$(id).value || (shown && $(id).valueAsNumber === shown[key])) $(id).value = usual[key];
  }
  $('width').max = $('height').max = usual.limits.side;
  $('steps').max = usual.limits.steps;
  $('count').max = usual.limits.pictures;
  const samplers = [...new Set(usual.schedulers.map((name) => name.split(':')[0]))];
  const chosen = [$('sampler').value, $('sigmas').value].filter(Boolean).join(':');
  const last = shown?.scheduler ?? '';
  $('sampler').replaceChildren(new Option("the model's own", ''), ...samplers.map((name) => new Option(name, name)));
  shown = usual;
  chooseScheduler(chosen && chosen !== last ? chosen : (usual.scheduler ?? ''));
  const allowed = new Set(usual.loras);
  for (const item of [...$('lora-list').children]) if (!allowed.has(item.dataset.name)) item.remove();
  $('loras').hidden = allowed.size === 0;
  offerLoras();
}

function chooseScheduler(name) {
  const [sampler, sigmas = ''] = name.split(':');
  const choose = (id, value) => {
    // Classes of diffusers are names, too, which the list does not show.
    if (value && ![...$(id).options].some((option) => option.value === value)) $(id).add(new Option(value, value));
    $(id).value = value;
  };
  choose('sampler', sampler);
  offerSigmas();
  choose('sigmas', sigmas);
}

function offerSigmas() {
  const of = (model()?.schedulers ?? []).filter((name) => name.startsWith(`${$('sampler').value}:`));
  const names = of.map((name) => name.split(':')[1]);
  const before = $('sigmas').value;
  $('sigmas').replaceChildren(new Option('as usual', ''), ...names.map((name) => new Option(name, name)));
  $('sigmas').value = names.includes(before) ? before : '';
  $('sigmas').disabled = names.length === 0;
}

function offerLoras() {
  const worn = new Set([...$('lora-list').children].map((item) => item.dataset.name));
  const left = (model()?.loras ?? []).filter((name) => !worn.has(name));
  $('lora-add').replaceChildren(new Option('Add a LoRA…', ''), ...left.map((name) => new Option(name, name)));
  $('lora-add').hidden = left.length === 0;
}

function addLora(name, weight) {
  const item = document.createElement('li');
  item.dataset.name = name;
  const label = document.createElement('label');
  const text = document.createElement('span');
  text.textContent = name;
  const input = Object.assign(document.createElement('input'), { type: 'number', step: '0.05', value: weight });
  label.append(text, input);
  const remove = Object.assign(document.createElement('button'), { type: 'button', textContent: 'Remove' });
  remove.setAttribute('aria-label', `Remove ${name}`);
  remove.onclick = () => {
    item.remove();
    offerLoras();
    $('lora-add').focus();
    remember();
  };
  item.append(label, remove);
  $('lora-list').append(item);
  offerLoras();
}

function setSeed(digits, isKept) {
  $('seed').value = digits;
  $('keep').checked = Boolean(isKept && digits !== '');
}

function setExtras(settings) {
  const isSet = ([name, unset]) => settings[name] !== undefined && settings[name] !== unset;
  extras = Object.fromEntries(
    Object.entries(EXTRAS)
      .filter(isSet)
      .map(([name]) => [name, settings[name]]),
  );
  const words = Object.entries(extras).map(
    ([name, value]) => `${EXTRA_NAMES[name]} ${value?.scale ? `×${value.scale}` : value}`,
  );
  $('extras').hidden = words.length === 0;
  $('extras-text').textContent = `Also: ${words.join(', ')}.`;
}

/** Text fields grow with their text, within bounds. */
function grow() {
  for (const id of ['prompt', 'negative']) {
    $(id).style.height = 'auto';
    $(id).style.height = `${Math.min($(id).scrollHeight + 2, 280)}px`;
  }
}

function newSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

$('model').onchange = changeModel;
$('sampler').onchange = offerSigmas;
$('lora-add').onchange = () => {
  const name = $('lora-add').value;
  if (name) addLora(name, 1);
};
$('seed').oninput = () => {
  $('keep').checked = $('seed').value !== '';
};
$('keep').onchange = () => {
  if ($('keep').checked && !$('seed').value) $('seed').value = newSeed();
};
$('dice').onclick = () => setSeed(newSeed(), true);
$('swap').onclick = () => {
  [$('width').value, $('height').value] = [$('height').value, $('width').value];
};
$('extras-off').onclick = () => setExtras({});
$('prompt').addEventListener('input', grow);
$('negative').addEventListener('input', grow);
$('form').addEventListener('input', remember);
$('form').addEventListener('click', remember);
