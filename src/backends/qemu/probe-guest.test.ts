import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { probeBios } from './probe-guest.ts';

test('the probe guest is what its source assembles to', () => {
  const dir = mkdtempSync(join(tmpdir(), 'hutch-probe-'));
  try {
    const [object, bios] = [join(dir, 'probe.o'), join(dir, 'probe.bin')];
    for (const argv of [
      ['as', '--64', '-o', object, join(import.meta.dirname, 'probe-guest.S')],
      ['ld', '-Ttext=0xffff0000', '--oformat', 'binary', '-o', bios, object],
    ]) {
      const [program = '', ...args] = argv;
      expect(spawnSync(program, args, { encoding: 'utf8' }), program).toMatchObject({ status: 0 });
    }
    expect(Buffer.compare(readFileSync(bios), probeBios())).toBe(0);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});
