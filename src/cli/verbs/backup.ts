// hutch system backup and restore: the store in one file, and the way back.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { open, rename, rm } from 'node:fs/promises';
import { resolve } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import { errorFromBody } from '../../sdk/errors.ts';
import { type Args, usage } from '../args.ts';
import type { Context } from '../context.ts';
import { daemonEntry } from '../daemon-start.ts';
import { clock, json, roughSize, safe } from '../output.ts';
import { outputFile } from '../output-file.ts';

const LINE_BYTES_MAX = 4_096;
const NOT_IN_IT = 'disks, images, kernels, snapshots, volumes, settings and the owner’s key file';

type Header = {
  readonly version: string;
  readonly schemaVersion: number;
  readonly createdAtMs: number;
  readonly sizeBytes: number;
  readonly sha256: string;
  readonly ledger: { readonly sequence: number; readonly hash: string };
};

export async function backup(context: Context, args: Args): Promise<number> {
  const output = args.value('output') ?? '-';
  if (output === '-' && context.io.isTerminal.stdout)
    throw usage('a backup is nothing for a terminal', 'write it to a file: hutch system backup -o FILE');
  if (output === '-' && context.json) throw usage('with --json the backup needs a file', 'like: hutch system backup -o FILE --json');
  const file = output === '-' ? null : await outputFile(output);
  const { bytes } = await context.client.download('system.backup', {}, { signal: context.interrupts.signal });
  const checked = new Checked();
  if (file === null) {
    for await (const chunk of bytes) {
      checked.take(chunk);
      await context.io.out(chunk);
    }
    checked.end();
    return 0;
  }
  // Beside it, then in its place: a file of that name is whole, and it is on the disk.
  const isReplaced = file.way === 'replace';
  const part = isReplaced ? `${file.path}.part-${process.pid}` : file.path;
  let header: Header;
  try {
    await using written = await open(part, isReplaced ? 'wx' : 'w', 0o600);
    for await (const chunk of bytes) {
      checked.take(chunk);
      await written.writeFile(chunk);
    }
    header = checked.end();
    if (isReplaced) {
      await written.sync();
      await rename(part, file.path);
    }
  } catch (error) {
    if (isReplaced) await rm(part, { force: true });
    throw error;
  }
  const { version, schemaVersion, createdAtMs, sizeBytes, ledger } = header;
  const result = { file: resolve(output), version, schemaVersion, createdAtMs, sizeBytes, ledgerEntries: ledger.sequence };
  const text = `wrote ${safe(output)}: ${roughSize(sizeBytes)}, schema ${schemaVersion}, ${ledger.sequence} ledger entries, unbroken\nnot in it: ${NOT_IN_IT}\n`;
  await context.io.out(context.json ? json(result) : text);
  return 0;
}

/** What arrives is what was sent: the first line says how much, and its checksum. */
class Checked {
  readonly #hash = createHash('sha256');
  #first = Buffer.alloc(0);
  #header: Header | null = null;
  #bytes = 0;

  take(chunk: Uint8Array): void {
    if (this.#header !== null) {
      this.#count(chunk);
      return;
    }
    this.#first = Buffer.concat([this.#first, chunk]);
    const end = this.#first.indexOf(0x0a);
    if (end < 0) {
      if (this.#first.byteLength > LINE_BYTES_MAX) throw broken();
      return;
    }
    this.#header = JSON.parse(this.#first.subarray(0, end).toString('utf8')) as Header;
    this.#count(this.#first.subarray(end + 1));
  }

  #count(bytes: Uint8Array): void {
    this.#bytes += bytes.byteLength;
    this.#hash.update(bytes);
  }

  /** @throws HutchError `unavailable` when it is not whole. */
  end(): Header {
    if (this.#header?.sizeBytes === this.#bytes && this.#header.sha256 === this.#hash.digest('hex')) return this.#header;
    throw broken();
  }
}

function broken(): HutchError {
  return new HutchError({ code: 'unavailable', message: 'the backup did not arrive whole', hint: 'try again' });
}

type Restored = Omit<Header, 'sizeBytes' | 'sha256' | 'ledger'> & {
  readonly ledgerEntries: number;
  readonly sandboxes: number;
  readonly storePath: string;
  readonly replaced: string | null;
};

export async function restore(context: Context, args: Args): Promise<number> {
  if ((context.env['HUTCH_API_URL'] ?? '') !== '')
    throw new HutchError({
      code: 'failed_precondition',
      message: 'HUTCH_API_URL names a daemon that is not this machine’s own',
      hint: 'unset HUTCH_API_URL',
    });
  const child = spawn(process.execPath, [daemonEntry(context.env), '--restore', resolve(args.first())], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: context.env,
  });
  let said = '';
  child.stdout.on('data', (chunk: Buffer) => (said += chunk.toString('utf8')));
  // What it does is atomic: an interrupt waits for its end, and it hears it itself.
  const [code] = (await once(child, 'close')) as [number | null];
  const { restored, error } = parsed(said);
  if (restored === undefined)
    throw errorFromBody(error ?? { code: 'internal', message: `the restore ended with ${code ?? 'a signal'}`, hint: null }, {});
  const lines = [
    `restored the store as it was at ${clock(restored.createdAtMs)}: ${restored.sandboxes} sandboxes, ${restored.ledgerEntries} ledger entries, unbroken`,
    ...(restored.replaced === null ? [] : [`the one before lies in ${restored.replaced}`]),
    `not in it: ${NOT_IN_IT}; what was made since is not known any more (hutch doctor --leaks)`,
  ];
  await context.io.out(context.json ? json(restored) : `${lines.map(safe).join('\n')}\n`);
  return 0;
}

function parsed(text: string): { readonly restored?: Restored; readonly error?: unknown } {
  try {
    return JSON.parse(text) as { restored?: Restored; error?: unknown };
  } catch {
    return {};
  }
}
