// Drives the page at `/` in Chromium as people do, and takes pictures of it.
//
//     node page.mjs KILN FOLDER
//
// CHROMIUM names the browser, which is /usr/bin/chromium otherwise.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { browser, folder, server } from './browser.mjs';

const troubles = [];

/** Opens the page; whatever its console complains about, and whatever it asks of others, fails the test. */
async function open(settings = {}) {
  const context = await browser.newContext({
    viewport: { width: 1280, height: 860 },
    colorScheme: 'light',
    acceptDownloads: true,
    ...settings,
  });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.on('pageerror', (error) => troubles.push(`error: ${error.message}`));
  page.on('console', (line) => {
    const isExpected = /Failed to load resource|net::ERR/.test(line.text());
    if (line.type() === 'error' && !isExpected) troubles.push(`console: ${line.text()}`);
  });
  page.on('request', (request) => {
    const url = request.url();
    if (!url.startsWith(server.address) && !/^(data|blob):/.test(url)) troubles.push(`asks ${url}`);
  });
  await page.goto(server.address);
  await page.waitForFunction(() => document.getElementById('model').options.length > 0);
  return page;
}

const shot = (page, name, options) => page.screenshot({ path: join(folder, `${name}.png`), ...options });
const done = (page, n) => page.waitForFunction((n) => document.querySelectorAll('.job.done').length >= n, n);
const first = (page) => page.locator('.job').first();
const value = (page, id) => page.locator(`#${id}`).inputValue();

async function fill(page, values) {
  for (const [id, value] of Object.entries(values)) await page.fill(`#${id}`, String(value));
}

async function step(name, work) {
  const begun = Date.now();
  await work();
  console.log(`ok   ${name} (${((Date.now() - begun) / 1000).toFixed(1)} s)`);
}

const page = await open();

await step('draws a picture and shows previews on the way', async () => {
  await fill(page, { prompt: 'a red circle above a blue square', width: 128, height: 128, steps: 60 });
  await page.keyboard.press('Control+Enter');
  const preview = page.locator('.job .preview:not([hidden])');
  await preview.waitFor();
  await shot(page, 'drawing');
  assert.match(await preview.getAttribute('src'), /^data:image\/png;base64,/);
  assert.match(await page.locator('.phase').first().textContent(), /^Step \d+ of 60 · about \d+ s$/);
  await done(page, 1);
  await page.locator('.tile img[src^="blob:"]').first().waitFor();
  assert.match(await value(page, 'seed'), /^\d+$/);
});

await step('shows places in the queue, and cancels with Esc', async () => {
  await fill(page, { steps: 150, width: 256, height: 256 });
  for (const prompt of ['a green triangle', 'a yellow star', 'a blue circle']) {
    await fill(page, { prompt });
    await page.click('#draw');
    await page.waitForFunction(() => !document.getElementById('draw').hasAttribute('aria-busy'));
  }
  await page.waitForFunction(() =>
    [...document.querySelectorAll('.phase')].some((one) => one.textContent.startsWith('1 job ahead')),
  );
  await shot(page, 'queue');
  for (let n = 1; n <= 3; n += 1) {
    await page.keyboard.press('Escape');
    await page.waitForFunction((n) => document.querySelectorAll('.job.cancelled').length === n, n);
  }
  assert.equal(await page.locator('.cancel').count(), 0);
  for (let n = 3; n > 0; n -= 1) await first(page).getByRole('button', { name: 'Delete' }).click();
  await page.waitForFunction(() => document.querySelectorAll('.job').length === 1);
});

await step('draws several pictures with a LoRA, another sampler and a seed that is kept', async () => {
  await fill(page, {
    prompt: 'two small circles',
    negative: 'a square',
    width: 128,
    height: 128,
    steps: 16,
    count: 3,
    seed: '18446744073709551614',
    guidance: 5,
  });
  await page.selectOption('#sampler', 'dpm++2m');
  await page.selectOption('#sigmas', 'karras');
  await page.selectOption('#lora-add', 'ink');
  await page.fill('#lora-list input', '0.6');
  await page.click('#draw');
  await done(page, 2);
  assert.equal(await first(page).locator('.tile').count(), 3);
});

await step('runs a picture again as it was', async () => {
  const sum = (of) =>
    of.evaluate(async (tile) => {
      const image = tile.querySelector('img');
      await image.decode();
      const canvas = document.createElement('canvas');
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      canvas.getContext('2d').drawImage(image, 0, 0);
      return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.join();
    });
  const second = first(page).locator('.tile').nth(1);
  await second.locator('img[src^="blob:"]').waitFor();
  const drawn = await sum(second);
  await page.selectOption('#model', 'quick');
  await fill(page, { prompt: 'something else', negative: '', steps: 3, count: 2, guidance: 1 });
  await second.click();
  await page.locator('#view-image[src^="blob:"]').waitFor();
  const facts = await page.locator('#view-facts').textContent();
  assert.match(facts, /Seed18446744073709551615/);
  assert.match(facts, /Samplerdpm\+\+2m:karras/);
  await shot(page, 'viewer');
  await page.click('#view-again');
  const expected = {
    prompt: 'two small circles',
    negative: 'a square',
    model: 'shapes',
    width: '128',
    steps: '16',
    guidance: '5',
    count: '1',
    seed: '18446744073709551615',
    sampler: 'dpm++2m',
    sigmas: 'karras',
  };
  for (const [id, text] of Object.entries(expected)) assert.equal(await value(page, id), text, id);
  assert.equal(await page.inputValue('#lora-list input'), '0.6');
  await page.keyboard.press('Control+Enter');
  await done(page, 3);
  await first(page).locator('.tile img[src^="blob:"]').waitFor();
  assert.equal(await sum(first(page).locator('.tile')), drawn);
});

await step('saves a picture', async () => {
  await first(page).locator('.tile').click();
  await page.locator('#view-save[href^="blob:"]').waitFor();
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('#view-save')]);
  assert.match(download.suggestedFilename(), /^[0-9a-f]{8}-18446744073709551615\.png$/);
  await page.keyboard.press('Escape');
  await page.locator('#viewer').waitFor({ state: 'hidden' });
});

/** Strokes the canvas of the painter from one place to another, in shares of its size. */
async function stroke(page, from, to) {
  await page.locator('#painter-canvas').waitFor();
  const box = await page.locator('#painter-canvas').boundingBox();
  const at = ([x, y]) => [box.x + x * box.width, box.y + y * box.height];
  await page.mouse.move(...at(from));
  await page.mouse.down();
  await page.mouse.move(...at(to), { steps: 8 });
  await page.mouse.up();
}

await step('paints a mask on a picture of the gallery and draws there', async () => {
  await first(page).locator('.tile').click();
  await page.click('#view-mask');
  await stroke(page, [0.1, 0.5], [0.4, 0.5]);
  await stroke(page, [0.1, 0.7], [0.9, 0.7]);
  await page.click('#undo');
  await page.click('#clear');
  await page.click('#undo');
  await stroke(page, [0.2, 0.4], [0.4, 0.6]);
  await shot(page, 'mask');
  await page.click('#painter-done');
  await page.locator('#start-mask').waitFor();
  await fill(page, { prompt: 'a blue square', steps: 12 });
  await page.click('#draw');
  await done(page, 4);
  await page.locator('#start').scrollIntoViewIfNeeded();
  await shot(page, 'inpainted');
  // The right quarter was not painted over: it is what it was.
  const ids = await page.locator('.job').evaluateAll((cards) => cards.slice(0, 2).map((card) => card.dataset.id));
  const [painted, original] = await Promise.all(ids.map((id) => right(page, id)));
  const off = painted.reduce((sum, byte, i) => sum + Math.abs(byte - original[i]), 0) / painted.length;
  assert(off < 8, `the rest is kept: it is off by ${off.toFixed(1)} of 255 on average`);
});

function right(page, id) {
  return page.evaluate(async (id) => {
    const bitmap = await createImageBitmap(await (await fetch(`/v1/jobs/${id}/pictures/0`)).blob());
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    canvas.getContext('2d').drawImage(bitmap, 0, 0);
    const from = Math.round(0.75 * canvas.width);
    return [...canvas.getContext('2d').getImageData(from, 0, canvas.width - from, canvas.height).data];
  }, id);
}

await step('fills in the picture and the mask of what is run again', async () => {
  await page.click('#remove');
  assert(await page.locator('#chosen').isHidden());
  await first(page).getByRole('button', { name: 'Run again' }).click();
  await page.locator('#start-mask').waitFor();
  assert.equal(await value(page, 'strength'), '1');
  await page.click('#remove');
});

await step('starts from a file, a drop and a paste', async () => {
  const png = Buffer.from(
    await page.evaluate(async () => {
      const canvas = Object.assign(document.createElement('canvas'), { width: 300, height: 200 });
      const context = canvas.getContext('2d');
      context.fillStyle = '#2255aa';
      context.fillRect(60, 40, 120, 120);
      return canvas.toDataURL().split(',')[1];
    }),
    'base64',
  );
  await page.setInputFiles('#file', { name: 'square.png', mimeType: 'image/png', buffer: png });
  await page.locator('#start-size', { hasText: '300 × 200' }).waitFor();
  assert.equal(Number(await value(page, 'width')) % 8, 0);
  assert(Number(await value(page, 'width')) > Number(await value(page, 'height')));
  for (const kind of ['drop', 'paste']) {
    await page.click('#remove');
    await page.evaluate(
      ([kind, base64]) => {
        const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], 'square.png', { type: 'image/png' }));
        const event =
          kind === 'drop'
            ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })
            : new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
      },
      [kind, png.toString('base64')],
    );
    await page.locator('#start-size', { hasText: '300 × 200' }).waitFor();
  }
  await fill(page, { prompt: 'a blue square', steps: 10 });
  await page.click('#draw');
  await done(page, 5);
  await page.click('#remove');
});

await step('says in one line what is wrong', async () => {
  await fill(page, { steps: 100000 });
  await page.click('#draw');
  await page.locator('#error', { hasText: 'steps: 100000, the limit is 150' }).waitFor();
  await shot(page, 'error');
  await page.setInputFiles('#file', { name: 'text.png', mimeType: 'image/png', buffer: Buffer.from('text') });
  await page.locator('#error', { hasText: 'no picture' }).waitFor();
  await fill(page, { steps: 12 });
});

await step('goes on where it was after a reload', async () => {
  await page.reload();
  await done(page, 5);
  assert.equal(await value(page, 'prompt'), 'a blue square');
});

await step('follows a job over a restart of the server', async () => {
  await fill(page, { prompt: 'a yellow triangle', width: 192, height: 192, steps: 60 });
  await page.click('#draw');
  await page.locator('.phase', { hasText: /Step 2\d of 60/ }).waitFor();
  await shot(page, 'page');
  await server.stop();
  await page.locator('#status', { hasText: 'The connection is lost' }).waitFor();
  await shot(page, 'offline');
  await server.start();
  await done(page, 6);
});

/** A phone's window of so many pixels. */
const touched = (width, height) => ({
  viewport: { width, height },
  hasTouch: true,
  isMobile: true,
  deviceScaleFactor: 2,
});

await step('is usable on a phone, by touch', async () => {
  const phone = await open(touched(360, 740));
  await done(phone, 6);
  const wide = () => phone.evaluate(() => document.documentElement.scrollWidth - screen.width);
  assert.equal(await wide(), 0, 'nothing is wider than the window');
  await shot(phone, 'phone-form');
  await phone.locator('#gallery').scrollIntoViewIfNeeded();
  await phone.locator('.tile img[src^="blob:"]').first().tap();
  await phone.locator('#view-image[src^="blob:"]').waitFor();
  await shot(phone, 'phone-viewer');
  await phone.tap('#view-mask');
  await phone.locator('#painter-canvas').waitFor();
  const box = await phone.locator('#painter-canvas').boundingBox();
  await phone.touchscreen.tap(box.x + box.width / 2, box.y + box.height / 2);
  await phone.waitForFunction(() => !document.getElementById('undo').disabled);
  await shot(phone, 'phone-mask');
  await phone.tap('#painter-done');
  await phone.locator('#start-mask').waitFor();
  assert.equal(await wide(), 0, 'nothing is wider than the window');
  await shot(phone, 'phone', { fullPage: true });
  await phone.context().close();
});

await step('shows on a phone how far a picture is, without scrolling', async () => {
  const phone = await open(touched(390, 844));
  await done(phone, 6);
  await fill(phone, { prompt: 'a red circle', width: 192, height: 192, steps: 80, seed: '' });
  await phone.tap('#draw');
  await phone.locator('.job .preview:not([hidden])').waitFor();
  const live = await first(phone).locator('.live').boundingBox();
  const bar = await phone.locator('.bar').boundingBox();
  await shot(phone, 'phone-drawing');
  assert(live.y >= bar.y + bar.height && live.y + live.height <= 844, JSON.stringify(live));
  const phase = await first(phone).locator('.phase').boundingBox();
  const isOnTop = ([x, y]) => document.elementFromPoint(x, y)?.closest('.live') !== null;
  assert(await phone.evaluate(isOnTop, [phase.x + phase.width / 2, phase.y + phase.height / 2]));
  await done(phone, 7);
  await phone.context().close();
});

await step('is dark where the system is', async () => {
  const dark = await open({ colorScheme: 'dark', reducedMotion: 'reduce' });
  await done(dark, 6);
  await dark.waitForFunction(
    () => document.querySelectorAll('.tile img[src^="blob:"]').length === document.querySelectorAll('.tile').length,
  );
  const ground = await dark.evaluate(() => getComputedStyle(document.body).backgroundColor);
  assert(
    ground.match(/\d+/g).every((part) => Number(part) < 64),
    ground,
  );
  await shot(dark, 'dark');
  await dark.locator('.tile').first().click();
  await dark.locator('#view-image[src^="blob:"]').waitFor();
  await shot(dark, 'dark-viewer');
  await dark.context().close();
});

await step('every control has a name, and focus can be seen', async () => {
  const nameless = await page.evaluate(() =>
    [...document.querySelectorAll('button, input, select, textarea, a')]
      .filter(
        (one) =>
          !(
            one.labels?.length ||
            one.getAttribute('aria-label') ||
            one.textContent.trim() ||
            one.querySelector('img[alt]')?.alt
          ),
      )
      .map((one) => one.outerHTML),
  );
  assert.deepEqual(nameless, []);
  await page.focus('#prompt');
  await page.keyboard.press('Tab');
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, 'solid');
});

await step('asks for a key where the one that it has is no longer good', async () => {
  await server.stop();
  const old = server.makeKey();
  await server.start();
  const guarded = await open({ httpCredentials: { username: 'any', password: old } });
  await server.stop();
  const key = server.makeKey();
  await server.start();
  await fill(guarded, { prompt: 'a red star', width: 64, height: 64, steps: 8 });
  await guarded.keyboard.press('Control+Enter');
  await guarded.locator('#key-dialog').waitFor();
  await shot(guarded, 'key');
  await guarded.keyboard.press('Escape');
  await guarded.locator('#error', { hasText: 'An API key is needed' }).waitFor();
  await guarded.click('#draw');
  await guarded.locator('#key-dialog').waitFor();
  await guarded.fill('#key', 'wrong');
  await guarded.keyboard.press('Enter');
  await guarded.locator('#key-error').waitFor();
  await guarded.fill('#key', key);
  await guarded.keyboard.press('Enter');
  await done(guarded, 1);
  assert.equal(await guarded.evaluate(() => sessionStorage.getItem('kiln-key')), key);
  assert.equal(
    await guarded.evaluate(() => Object.values(localStorage).join().includes(sessionStorage.getItem('kiln-key'))),
    false,
  );
  await guarded.context().close();
});

await browser.close();
await server.end();
assert.deepEqual(troubles, []);
console.log('the page works');
