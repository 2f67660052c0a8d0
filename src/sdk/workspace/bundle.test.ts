// The header of a bundle, which a sandbox has sent.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { HutchError } from '../../domain/errors.ts';
import { readHeader } from './bundle.ts';

const id = 'a'.repeat(40);

test('refs that we know are taken, others and what it builds upon are not', () => {
  const text = `# v2 git bundle\n-${id} one\n${id} refs/hutch/work\n${id} refs/heads/a b\n${id} HEAD\n${id} refs/tags/v1\n${id} refs/hutch/stash-2\n${id} refs/hutch/x\n${id} refs/remotes/x/y\n\nPACK`;
  const { refs, packAt } = readHeader(Buffer.from(text));
  expect(refs).toEqual([
    { ref: 'refs/hutch/work', commit: id },
    { ref: 'refs/heads/a b', commit: id },
    { ref: 'HEAD', commit: id },
    { ref: 'refs/tags/v1', commit: id },
    { ref: 'refs/hutch/stash-2', commit: id },
  ]);
  expect(text.slice(packAt)).toBe('PACK');
});

test('what is no header is refused, whatever it is', () => {
  for (const text of [
    '',
    '# v2 git bundle\n',
    '# v9 git bundle\n\n',
    '# v2 git bundle\nnonsense\n\n',
    `# v2 git bundle\n${id} refs/heads/${'x'.repeat(2_000)}\n\n`,
  ])
    expect(() => readHeader(Buffer.from(text)), text.slice(0, 40)).toThrow(HutchError);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.boolean(), (bytes, begins) => {
      const whole = Buffer.concat([begins ? Buffer.from('# v2 git bundle\n') : Buffer.alloc(0), bytes]);
      try {
        for (const { ref, commit } of readHeader(whole).refs) expect(`${commit} ${ref}`).toMatch(/^[0-9a-f]{40,64} (?:HEAD$|refs\/)/);
      } catch (error) {
        expect(error).toBeInstanceOf(HutchError);
      }
    }),
  );
});
