// `kiln serve` for the browser's test: the small model with a LoRA, in a folder of its own.

import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

const SHAPES = resolve(import.meta.dirname, '../../models/shapes');

/** A LoRA of rank 1 for a projection of the small model, as a safetensors file. */
function lora(path) {
  const module = 'lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q';
  const tensors = [[`${module}.lora_down.weight`, [1, 128]], [`${module}.lora_up.weight`, [128, 1]]];
  const numbers = new Float32Array(256).map((_, i) => Math.sin(i) / 4);
  const header = Object.fromEntries(tensors.map(([name, shape], i) => [name, { dtype: 'F32', shape, data_offsets: [512 * i, 512 * (i + 1)] }]));
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([length, text, Buffer.from(numbers.buffer)]));
}

export class Server {
  constructor(kiln) {
    this.kiln = resolve(kiln);
    this.folder = mkdtempSync(join(tmpdir(), 'kiln-page-'));
    lora(join(this.folder, 'ink.safetensors'));
    const model = (name, title, more) => ({ name, title, bundle: SHAPES, preload: true, ...more });
    const models = [
      model('shapes', 'Small shapes', { steps: 20, loras: { ink: 'ink.safetensors' } }),
      model('quick', 'Small shapes, quick', { steps: 8, scheduler: 'dpm++2m:karras' }),
    ];
    writeFileSync(join(this.folder, 'models.yaml'), JSON.stringify({ models }));
  }

  /** Makes an API key and gives it; servers that start from now on ask for it, and for no earlier one. */
  makeKey() {
    const made = spawnSync(this.kiln, ['serve', '--new-key', 'tester'], { encoding: 'utf8' });
    writeFileSync(join(this.folder, 'keys'), made.stdout);
    this.keys = ['--keys', join(this.folder, 'keys')];
    return made.stderr.trim().split(' ').at(-1);
  }

  /** Starts the process, again at the port that it had. */
  start() {
    const flags = ['--listen', `127.0.0.1:${this.port ?? 0}`, '--state', join(this.folder, 'state'), '--batch', '1'];
    const models = join(this.folder, 'models.yaml');
    const env = { ...process.env, KILN_ENGINE_CACHE: join(this.folder, 'engines') };
    this.child = spawn(this.kiln, ['serve', models, ...flags, ...(this.keys ?? [])], { env });
    let said = '';
    return new Promise((done, fail) => {
      this.child.on('exit', () => fail(new Error(`the server ended: ${said}`)));
      this.child.stderr.on('data', (data) => {
        said += data;
        const found = said.match(/serving on (http:\/\/[^:]+:(\d+))/);
        if (!found) return;
        [, this.address, this.port] = found;
        done(this);
      });
    });
  }

  /** Ends the process at once. */
  async stop() {
    this.child.removeAllListeners('exit');
    const ended = new Promise((done) => { this.child.once('exit', done); });
    this.child.kill('SIGKILL');
    await ended;
  }

  async end() {
    await this.stop();
    rmSync(this.folder, { recursive: true });
  }
}
