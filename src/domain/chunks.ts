// What an HTTP message carries, chunk by chunk as it comes. Node's own iterator copies chunks that have come together into one more
// piece of new memory; here each is as the parser made it, in memory of its own, which who has copied it may let go of.

/** As far as it is needed of Node's `Readable`. */
type Flowing = {
  readonly readableEnded: boolean;
  readonly errored: Error | null;
  readonly destroyed: boolean;
  readonly on: Listen;
  readonly off: Listen;
  pause(): unknown;
  resume(): unknown;
  isPaused(): boolean;
};
type Listen = {
  (event: 'data', listener: (chunk: Uint8Array) => void): unknown;
  (event: 'error', listener: (error: Error) => void): unknown;
  (event: 'end' | 'close', listener: () => void): unknown;
};

/** No more is read while so much waits. */
const WAITING_BYTES_MAX = 256 * 1024;

/** Who leaves early leaves the stream paused, and what had come of it is gone. @throws what the stream says when it breaks off. */
export async function* chunksOf(stream: Flowing): AsyncGenerator<Uint8Array, void, undefined> {
  const waiting: Uint8Array[] = [];
  let bytes = 0;
  let over: 'whole' | Error | null = null;
  let changed = Promise.withResolvers<void>();
  const onData = (chunk: Uint8Array): void => {
    waiting.push(chunk);
    bytes += chunk.byteLength;
    if (bytes >= WAITING_BYTES_MAX) stream.pause();
    changed.resolve();
  };
  const onOver = (how: 'whole' | Error): void => {
    over ??= how;
    changed.resolve();
  };
  const onEnd = (): void => onOver('whole');
  const onClose = (): void => onOver(new Error('it was closed before its end'));
  if (stream.readableEnded) onEnd();
  else if (stream.destroyed) onOver(stream.errored ?? new Error('it was closed before'));
  stream.on('data', onData);
  stream.on('end', onEnd);
  stream.on('error', onOver);
  stream.on('close', onClose);
  stream.resume();
  try {
    for (;;) {
      for (let chunk = waiting.shift(); chunk !== undefined; chunk = waiting.shift()) {
        bytes -= chunk.byteLength;
        if (bytes < WAITING_BYTES_MAX && stream.isPaused()) stream.resume();
        yield chunk;
      }
      if (over === 'whole') return;
      if (over !== null) throw over;
      changed = Promise.withResolvers();
      await changed.promise;
    }
  } finally {
    stream.off('data', onData);
    stream.off('end', onEnd);
    stream.off('error', onOver);
    stream.off('close', onClose);
    stream.pause();
  }
}
