// Bytes for a client whose first ones are asked for here: what cannot be given is an answer, and not half of one.
import type { Download } from './handlers.ts';

export async function begunDownload(of: Omit<Download, 'bytes'>, source: AsyncIterable<Uint8Array>): Promise<Download> {
  const bytes = source[Symbol.asyncIterator]();
  const first = await bytes.next();
  return {
    ...of,
    bytes: (async function* () {
      try {
        if (first.done !== true) yield first.value;
        for (let next = await bytes.next(); next.done !== true; next = await bytes.next()) yield next.value;
      } finally {
        await bytes.return?.();
      }
    })(),
  };
}
