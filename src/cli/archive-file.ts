// Files that go to the daemon and come from it: told how far they are, and there whole or not at all.
import { constants, createReadStream, createWriteStream } from 'node:fs';
import { access, rename, rm, stat } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import { usage } from './args.ts';
import type { Context } from './context.ts';
import { outputFile } from './output-file.ts';

/** Of a file that is sent: with 64 KiB, which is Node's own measure, it costs half as much processor time again. */
export const SENT_BYTES = 256 * 1024;

/** `-` is stdin. Behind its end the daemon works alone: `after` says at what. */
export async function fileToSend(
  context: Context,
  path: string,
  { step, after }: { readonly step: string; readonly after: string },
): Promise<AsyncIterable<Uint8Array>> {
  if (path !== '-' && !(await readable(path))) throw usage(`${path} cannot be read`);
  const info = path === '-' ? null : await stat(path);
  if (info?.isDirectory() === true)
    throw usage(`${path} is a directory`, 'an archive of it is wanted: tar -C DIRECTORY -c . makes one, and - reads it from stdin');
  const source: AsyncIterable<Uint8Array> = path === '-' ? process.stdin : createReadStream(path, { highWaterMark: SENT_BYTES });
  const total = info?.isFile() === true ? info.size : undefined;
  return (async function* () {
    yield* told(context, { step, detail: path }, source, total);
    context.progress.show({ step, detail: after });
  })();
}

/** Without `output`, or where it is `-`: to stdout. A file of that name is whole, or stays what it was. */
export async function keepReceived(
  context: Context,
  bytes: AsyncIterable<Uint8Array>,
  output: string | undefined,
  { step, total }: { readonly step: string; readonly total?: number | undefined },
): Promise<void> {
  const { signal } = context.interrupts;
  const isTold = output !== undefined && output !== '-';
  try {
    if (!isTold) {
      for await (const chunk of bytes) await context.io.out(chunk);
      return;
    }
    const file = await outputFile(output);
    const source = told(context, { step, detail: output }, bytes, total);
    if (file.way === 'write-to') return await pipeline(source, createWriteStream(file.path), { signal });
    const part = `${file.path}.part-${process.pid}`;
    try {
      await pipeline(source, createWriteStream(part, { flags: 'wx' }), { signal });
      await rename(part, file.path);
    } catch (error) {
      await rm(part, { force: true });
      throw error;
    }
  } finally {
    context.progress.clear();
  }
}

/** Nobody reads an archive. */
export function refuseTerminal(context: Context, output: string | undefined, instead: string): void {
  if ((output === undefined || output === '-') && context.io.isTerminal.stdout)
    throw usage('an archive is nothing for a terminal', `write it to a file: ${instead}`);
}

async function* told(
  context: Context,
  what: { readonly step: string; readonly detail: string },
  source: AsyncIterable<Uint8Array>,
  total: number | undefined,
): AsyncGenerator<Uint8Array> {
  let done = 0;
  for await (const chunk of source) {
    context.progress.show({ ...what, done, unit: 'bytes', ...(total === undefined ? {} : { total }) });
    done += chunk.byteLength;
    yield chunk;
  }
}

async function readable(path: string): Promise<boolean> {
  return await access(path, constants.R_OK).then(
    () => true,
    () => false,
  );
}
