import { expect, test, vi } from 'vitest';
import type { Io } from './io.ts';
import { newProgressLine } from './progress.ts';

test('progress is cut to the terminal, and shown whole on one that does not know its size', () => {
  const io = { isTerminal: { stdin: true, stdout: false, stderr: true } } as Io;
  const { columns } = process.stderr;
  const write = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
  const shown = (width: number): string => {
    process.stderr.columns = width;
    newProgressLine(io, false).show({ step: 'starting the daemon' });
    return String(write.mock.lastCall?.[0]).replace('\r\u001b[K', '');
  };
  try {
    // What a pseudo terminal of `script` or `docker run -t` says before anybody has set its size.
    expect(shown(0)).toBe('starting the daemon');
    expect(shown(80)).toBe('starting the daemon');
    expect(shown(12)).toBe('starting t…');
  } finally {
    write.mockRestore();
    process.stderr.columns = columns;
  }
});
