// A stream of JSON lines, cut at its newlines, with a bound on each.
import type { Operation } from '../../host/operation.ts';

const LINE_BYTES_MAX = 1024 * 1024;

export async function* lines(op: Operation, stream: AsyncIterable<Uint8Array>): AsyncGenerator<string, void, undefined> {
  const decoder = new TextDecoder();
  let rest = '';
  for await (const chunk of stream) {
    rest += decoder.decode(chunk, { stream: true });
    const whole = rest.split('\n');
    rest = whole.pop() ?? '';
    if (rest.length > LINE_BYTES_MAX) throw op.error('internal', `Docker sent a line of more than ${LINE_BYTES_MAX} bytes`);
    for (const line of whole) if (line.trim() !== '') yield line;
  }
  if (rest.trim() !== '') yield rest;
}
