// The picture to start from, and the mask that is painted on it.

const $ = (id) => document.getElementById(id);
/** Longest side of a picture that is sent, whatever the model's limit. */
const MAX_SIDE = 4096;
/** Least pixels of a mask's longer side, so that small pictures can be painted on finely. */
const FINE = 512;
/** What masks are shown in. */
const COLOUR = '#e8590c';

/** The picture: a PNG file, its size, and the mask's file. */
let picture = null;
/** What was painted: strokes in shares of the picture's size; nothing but an earlier mask before the first. */
let strokes = [];
let base = null;

/** Starts from a file that the browser can read; its size in pixels, or a failure in one line. */
export async function set(file, limit = MAX_SIDE) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error('The file is no picture that this browser can read');
  });
  const scale = Math.min(1, Math.min(limit, MAX_SIDE) / Math.max(bitmap.width, bitmap.height));
  const canvas = canvasOf(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
  const context = canvas.getContext('2d');
  context.fillStyle = '#fff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  remove();
  const blob = await png(canvas);
  picture = { blob, url: URL.createObjectURL(blob), width: canvas.width, height: canvas.height, mask: null };
  show();
  return { width: canvas.width, height: canvas.height };
}

/** Lays a mask over the picture: a file that is white where to paint. */
export async function setMask(file) {
  const bitmap = await createImageBitmap(file);
  base = canvasOf(bitmap.width, bitmap.height);
  const context = base.getContext('2d');
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, base.width, base.height);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i] >= 128 ? 255 : 0;
  context.putImageData(pixels, 0, 0);
  strokes = [];
  await take();
}

/** Starts from nothing. */
export function remove() {
  if (picture) URL.revokeObjectURL(picture.url);
  dropMask();
  picture = null;
  show();
}

export function setStrength(strength) {
  $('strength').value = strength;
  $('strength-value').value = Number($('strength').value).toFixed(2);
}

/** What a request says of the picture. */
export async function read() {
  if (!picture) return {};
  const fields = { init_image: await dataUrl(picture.blob), strength: Number($('strength').value) };
  if (picture.mask) fields.mask = await dataUrl(picture.mask);
  return fields;
}

/** Opens the painter. */
export function paint() {
  if (!picture) return;
  $('painter-image').src = picture.url;
  size($('painter-canvas'));
  before = [...strokes];
  baseBefore = base;
  $('erase').checked = false;
  $('painter').showModal();
  fit();
  redraw();
}

let before = [];
let baseBefore = null;

function canvasOf(width, height) {
  return Object.assign(document.createElement('canvas'), { width, height });
}

function size(canvas) {
  const scale = Math.max(1, FINE / Math.max(picture.width, picture.height));
  canvas.width = Math.round(picture.width * scale);
  canvas.height = Math.round(picture.height * scale);
}

function png(canvas) {
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error('The picture is too large for this browser'))), 'image/png');
  });
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error('The picture cannot be read'));
    reader.readAsDataURL(blob);
  });
}

function show() {
  $('choose').hidden = picture !== null;
  $('chosen').hidden = $('strength-field').hidden = picture === null;
  if (!picture) return;
  $('start-image').src = picture.url;
  $('start-size').textContent = `${picture.width} × ${picture.height}`;
  $('paint').textContent = picture.mask ? 'Change mask' : 'Paint a mask';
  $('unmask').hidden = $('start-mask').hidden = picture.mask === null;
}

function dropMask() {
  strokes = [];
  base = null;
  if (picture) picture.mask = null;
}

/** Makes the mask's file of what is painted. */
async function take() {
  const layer = canvasOf(1, 1);
  size(layer);
  const context = layer.getContext('2d', { willReadFrequently: true });
  draw(context, COLOUR);
  const { data } = context.getImageData(0, 0, layer.width, layer.height);
  const isPainted = data.some((value, i) => i % 4 === 3 && value >= 128);
  if (!isPainted) {
    dropMask();
    return show();
  }
  $('start-mask').src = layer.toDataURL();
  context.globalCompositeOperation = 'source-in';
  context.fillStyle = '#fff';
  context.fillRect(0, 0, layer.width, layer.height);
  context.globalCompositeOperation = 'destination-over';
  context.fillStyle = '#000';
  context.fillRect(0, 0, layer.width, layer.height);
  if (!picture.mask) setStrength(1);
  picture.mask = await png(layer);
  show();
}

function draw(context, colour) {
  const { width, height } = context.canvas;
  context.globalCompositeOperation = 'source-over';
  context.clearRect(0, 0, width, height);
  if (base) {
    context.drawImage(base, 0, 0, width, height);
    context.globalCompositeOperation = 'source-in';
    context.fillStyle = colour;
    context.fillRect(0, 0, width, height);
  }
  for (const stroke of strokes) line(context, stroke, colour);
}

function line(context, stroke, colour) {
  const { width, height } = context.canvas;
  if (stroke.clears) return context.clearRect(0, 0, width, height);
  context.globalCompositeOperation = stroke.erases ? 'destination-out' : 'source-over';
  context.strokeStyle = colour;
  context.lineWidth = stroke.size * Math.max(width, height);
  context.lineCap = context.lineJoin = 'round';
  context.beginPath();
  const [[x, y], ...rest] = stroke.points;
  context.moveTo(x * width, y * height);
  // A line without length is a dot.
  if (rest.length === 0) context.lineTo(x * width, y * height);
  for (const [x, y] of rest) context.lineTo(x * width, y * height);
  context.stroke();
}

function redraw() {
  draw($('painter-canvas').getContext('2d'), COLOUR);
  $('undo').disabled = strokes.length === 0;
  $('clear').disabled = strokes.length === 0 && base === null;
}

/** Makes the sheet as large as there is room. */
function fit() {
  if (!picture || !$('painter').open) return;
  const room = $('sheet').parentElement;
  const scale = Math.min(room.clientWidth / picture.width, room.clientHeight / picture.height);
  $('sheet').style.width = `${Math.floor(picture.width * scale)}px`;
  $('sheet').style.height = `${Math.floor(picture.height * scale)}px`;
}

function place(event) {
  const box = $('painter-canvas').getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function ring(event) {
  const box = $('painter-canvas').getBoundingClientRect();
  const width = brush() * Math.max(box.width, box.height);
  const [x, y] = place(event);
  Object.assign($('brush-ring').style, { width: `${width}px`, height: `${width}px`, left: `${100 * x}%`, top: `${100 * y}%` });
  $('brush-ring').hidden = false;
}

function brush() {
  return Number($('brush').value) / 100;
}

const canvas = $('painter-canvas');
canvas.onpointerdown = (event) => {
  if (event.button !== 0) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  strokes.push({ size: brush(), erases: $('erase').checked, points: [place(event)], pointer: event.pointerId });
  redraw();
};
canvas.onpointermove = (event) => {
  ring(event);
  const stroke = strokes.at(-1);
  if (!canvas.hasPointerCapture(event.pointerId) || stroke?.pointer !== event.pointerId) return;
  for (const one of event.getCoalescedEvents?.() ?? []) stroke.points.push(place(one));
  stroke.points.push(place(event));
  redraw();
};
canvas.onpointerleave = () => { $('brush-ring').hidden = true; };
$('undo').onclick = () => {
  strokes.pop();
  redraw();
};
$('clear').onclick = () => {
  strokes.push({ clears: true });
  redraw();
};
$('painter-done').onclick = async () => {
  $('painter').close('done');
  await take();
};
$('painter-cancel').onclick = () => $('painter').close('');
$('painter').addEventListener('close', () => {
  if ($('painter').returnValue !== 'done') [strokes, base] = [before, baseBefore];
  $('painter').returnValue = '';
});
$('painter').addEventListener('keydown', (event) => {
  if (event.key === 'z' && (event.ctrlKey || event.metaKey)) $('undo').click();
  const change = { '[': -2, ']': 2 }[event.key] ?? 0;
  $('brush').value = Number($('brush').value) + change;
});
window.addEventListener('resize', fit);

$('choose').onclick = () => $('file').click();
$('paint').onclick = paint;
$('remove').onclick = () => {
  remove();
  $('choose').focus();
};
$('unmask').onclick = () => {
  dropMask();
  show();
  $('paint').focus();
};
$('strength').oninput = () => setStrength($('strength').value);
setStrength(0.8);
