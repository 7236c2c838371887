// Drives the page at `/docs` in Chromium as people do, and takes pictures of it.
//
//     node docs.mjs KILN FOLDER
//
// CHROMIUM names the browser, which is /usr/bin/chromium otherwise.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { browser, folder, server } from './browser.mjs';

const troubles = [];

/** Opens the page; whatever its console complains about, and whatever it asks of others, fails the test. */
async function open(settings = {}, hash = '') {
  const page = await browser.newPage({ viewport: { width: 1280, height: 860 }, ...settings });
  page.on('pageerror', (error) => troubles.push(`error: ${error.message}`));
  page.on('console', (line) => line.type() === 'error' && troubles.push(`console: ${line.text()}`));
  page.on('request', (request) => request.url().startsWith(server.address) || troubles.push(`asks ${request.url()}`));
  await page.goto(`${server.address}/docs${hash}`);
  await page.waitForSelector('details');
  return page;
}

const shot = (page, name) => page.screenshot({ path: join(folder, `${name}.png`) });
const isWide = (page) => page.evaluate(() => document.documentElement.scrollWidth > innerWidth);

const page = await open();
assert((await page.locator('details').count()) > 70);
await shot(page, 'docs');

// By keyboard alone: find a path, open it, read its fields.
await page.keyboard.press('Tab');
await page.locator('#search').focus();
await page.keyboard.type('images generations');
assert.equal(await page.locator('details:visible').count(), 1);
await page.keyboard.press('Tab');
await page.keyboard.press('Enter');
const rows = page.locator('details:visible table').first().locator('tr');
await rows.first().waitFor();
assert.match((await rows.allTextContents()).join('\n'), /n\s*integer from 1 to 10/);
await shot(page, 'docs-open');
await page.locator('details:visible').scrollIntoViewIfNeeded();
assert.equal(await isWide(page), false);

// On a phone, dark, by a link to an operation.
const phone = await open({ viewport: { width: 360, height: 740 }, colorScheme: 'dark' }, '#post_sdapi_v1_txt2img');
await phone.locator('details[open] table').first().waitFor();
assert.equal(await isWide(phone), false);
await phone.locator('#post_sdapi_v1_txt2img').scrollIntoViewIfNeeded();
await phone.evaluate(() => document.getElementById('post_sdapi_v1_txt2img').scrollIntoView());
await shot(phone, 'docs-phone');

await browser.close();
server.child.kill('SIGKILL');
assert.deepEqual(troubles, []);
console.log('ok');
