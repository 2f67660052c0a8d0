// Lines of JSON out of a byte stream, with a bound on each. Empty lines are the server's heartbeat.
import { HutchError } from '../domain/errors.ts';

export const LINE_BYTES_MAX = 8 * 1024 * 1024;

export async function* jsonLines(source: AsyncIterable<Uint8Array>): AsyncGenerator<unknown, void, undefined> {
  let held: Uint8Array[] = [];
  let heldBytes = 0;
  for await (const chunk of source) {
    let from = 0;
    for (let at = chunk.indexOf(10, from); at >= 0; at = chunk.indexOf(10, from)) {
      held.push(chunk.subarray(from, at));
      const line = Buffer.concat(held).toString('utf8');
      held = [];
      heldBytes = 0;
      from = at + 1;
      if (line.trim() !== '') yield JSON.parse(line);
    }
    held.push(chunk.subarray(from));
    heldBytes += chunk.byteLength - from;
    if (heldBytes > LINE_BYTES_MAX)
      throw new HutchError({ code: 'internal', message: `a line of the answer is longer than ${LINE_BYTES_MAX} bytes` });
  }
  // A last line without its end was cut off: the caller sees the stream's own error, or what it misses.
}
