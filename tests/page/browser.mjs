// What the browser's tests begin with: a server, Chromium, and a folder for pictures, as the command line names them.

import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { basename } from 'node:path';
import { chromium } from 'playwright-core';
import { Server } from './server.mjs';

export const [kiln, folder] = process.argv.slice(2);
assert(kiln && folder, `usage: node ${basename(process.argv[1])} KILN FOLDER`);
mkdirSync(folder, { recursive: true });
export const server = await new Server(kiln).start();
export const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu'],
});
process.on('exit', () => server.child.kill('SIGKILL'));
