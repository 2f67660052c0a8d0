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

test('what takes long says without a terminal too how far it is: a line for each part or ten per cent, and not many of them', () => {
  const write = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
  const clock = vi.spyOn(performance, 'now');
  try {
    const line = newProgressLine({ isTerminal: { stdin: true, stdout: true, stderr: false } } as Io, false);
    // A minute: an answer each tenth of a second.
    for (let tenth = 0; tenth < 600; tenth += 1) {
      clock.mockReturnValue(tenth * 100);
      line.show({ step: 'image', detail: tenth < 300 ? 'fetching' : 'packing', done: tenth % 300, total: 300, unit: 'items' });
    }
    const lines = write.mock.calls.map(([text]) => String(text));
    expect(lines[0]).toContain('preparing the kernel and the image');
    expect(lines).toEqual(expect.arrayContaining(['hutch: image: fetching (10 %)\n', 'hutch: image: packing (50 %)\n']));
    expect(new Set(lines).size).toBe(lines.length);
    expect(lines.length).toBeLessThanOrEqual(22);
    // What takes seconds on most machines says no more than that it began, however slow this one is.
    write.mockClear();
    for (const [second, detail] of [
      [60, 'booting the guest once'],
      [75, 'saving the machine'],
    ] as const) {
      clock.mockReturnValue(second * 1_000);
      line.show({ step: 'template', detail });
    }
    expect(write.mock.calls).toHaveLength(1);
    // What nobody would miss without a terminal is not told, however long it takes.
    write.mockClear();
    for (let second = 80; second < 99; second += 1) {
      clock.mockReturnValue(second * 1_000);
      line.show({ step: 'making the disk', done: second, total: 100, unit: 'items' });
    }
    expect(write).not.toHaveBeenCalled();
  } finally {
    clock.mockRestore();
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
