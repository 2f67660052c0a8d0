// Asks a person for something that is not shown while it is typed.
import { createInterface } from 'node:readline/promises';
import { Writable } from 'node:stream';
import type { Context } from './context.ts';

export async function askSecret({ io, interrupts }: Context, question: string): Promise<string> {
  await io.err(question);
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() });
  const reader = createInterface({ input: process.stdin, output: silent, terminal: true });
  try {
    return await reader.question('', { signal: interrupts.signal });
  } finally {
    reader.close();
    await io.err('\n');
  }
}
