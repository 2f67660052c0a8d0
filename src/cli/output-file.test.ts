import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { outputFile } from './output-file.ts';

test('what a flag names for output is replaced where it is a file, behind links too, and written to where it is none', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'hutch-output-'));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  const file = join(dir, 'file');
  writeFileSync(file, 'before');
  symlinkSync('file', join(dir, 'link'));
  expect(await outputFile(file)).toEqual({ path: file, way: 'replace' });
  expect(await outputFile(join(dir, 'link'))).toEqual({ path: file, way: 'replace' });
  expect(await outputFile(join(dir, 'new'))).toEqual({ path: join(dir, 'new'), way: 'replace' });
  expect(await outputFile('/dev/null')).toEqual({ path: '/dev/null', way: 'write-to' });
  for (const [path, said] of [
    [dir, 'is no file'],
    ['', "'' is no file"],
    [join(dir, 'new/'), 'is no file'],
    [join(dir, 'no/such'), `there is no directory ${join(dir, 'no')}`],
    [join(file, 'below'), `there is no directory ${file}`],
  ] as const)
    await expect(outputFile(path), path).rejects.toThrow(said);
});
