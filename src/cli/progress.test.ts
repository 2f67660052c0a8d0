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

test.each([true, false])('what a sandbox is made without is told once, and stays on the screen (a terminal: %s)', (stderr) => {
  const write = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
  try {
    const line = newProgressLine({ isTerminal: { stdin: true, stdout: false, stderr } } as Io, false);
    for (let times = 0; times < 2; times += 1) line.show({ step: 'limits', detail: 'not limited: cpu' });
    line.clear();
    expect(write.mock.calls.map(([text]) => text)).toEqual(['hutch: not limited: cpu\n']);
  } finally {
    write.mockRestore();
  }
});

test('progress is shown on a terminal; elsewhere one plain line says what takes long and is done once, and with --json nothing', () => {
  const write = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
  try {
    const written = (stderr: boolean, json: boolean): readonly unknown[] => {
      write.mockClear();
      const line = newProgressLine({ isTerminal: { stdin: true, stdout: true, stderr } } as Io, json);
      for (const done of [1, 2, 3]) line.show({ step: 'pull', done, total: 3, unit: 'bytes' });
      line.show({ step: 'starting the daemon' });
      line.clear();
      return write.mock.calls.map(([text]) => text);
    };
    expect(written(false, false)).toEqual(['hutch: pulling the image…\n']);
    expect(written(false, true)).toEqual([]);
    expect(written(true, false)[0]).toBe('\r\u001b[Kpull 1 B of 3 B (33 %)');
  } finally {
    write.mockRestore();
  }
});
