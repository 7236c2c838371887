// Drives a running `kiln serve` with OpenAI's client for JavaScript.
//
//     npm install openai@7.59.0
//     node openai_node.mjs http://127.0.0.1:7860 [KEY]        (a copy beside node_modules)

import assert from 'node:assert/strict';
import { createReadStream, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import OpenAI, { toFile } from 'openai';

const [base, apiKey = 'none'] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey, maxRetries: 0 });
const bytes = (picture) => Buffer.from(picture.b64_json, 'base64');

const model = (await client.models.list()).data[0].id;
assert.equal((await client.models.retrieve(model)).owned_by, 'kiln');
const missing = await client.models.retrieve('sd/../x').catch((error) => error);
assert.deepEqual([missing.status, missing.code], [404, 'model_not_found']);

const asked = { model, prompt: 'a red circle', steps: 8, seed: 7 };
const both = await client.images.generate({ ...asked, n: 2 });
const first = bytes(both.data[0]);
assert.equal(first.toString('latin1', 1, 4), 'PNG');
assert.notDeepEqual(first, bytes(both.data[1]));
assert.deepEqual(Buffer.from(await (await fetch(both.data[0].url)).arrayBuffer()), first);

const events = [];
for await (const event of await client.images.generate({ ...asked, stream: true, partial_images: 3 })) {
  events.push(event);
}
const types = events.map((event) => event.type);
assert.deepEqual(types.slice(0, -1), Array(3).fill('image_generation.partial_image'));
assert.equal(types.at(-1), 'image_generation.completed');
assert.deepEqual(bytes(events.at(-1)), first);

const webp = await client.images.generate({ ...asked, output_format: 'webp', size: '64x48' });
assert.equal(bytes(webp.data[0]).toString('latin1', 8, 12), 'WEBP');

const path = join(mkdtempSync(join(tmpdir(), 'kiln-')), 'a.png');
writeFileSync(path, first);
const edited = { model, prompt: 'a blue circle', steps: 8, seed: 1, strength: 0.7 };
const whole = await client.images.edit({ ...edited, image: await toFile(first, 'a.png') });
// A stream has no length: the body comes in chunks.
const streamed = await client.images.edit({ ...edited, image: createReadStream(path) });
const listed = await client.images.edit({ ...edited, image: [await toFile(first, 'a.png')] });
assert.deepEqual(bytes(streamed.data[0]), bytes(whole.data[0]));
assert.deepEqual(bytes(listed.data[0]), bytes(whole.data[0]));
assert.ok((await client.images.createVariation({ model, image: createReadStream(path) })).data[0].b64_json);

for (const [name, value] of Object.entries({ n: 11, size: '7x7', steps: 0, background: 'transparent', tiling: true })) {
  const error = await client.images.generate({ ...asked, [name]: value }).catch((error) => error);
  assert.deepEqual([error.status, error.param], [400, name]);
}
console.log('openai for JavaScript draws');
