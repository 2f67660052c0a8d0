import fc from 'fast-check';
import { expect, test } from 'vitest';
import { dockerfileOf, parseWarmth, shownWarmth, stepAtLine, stepsRefusal, warmWanted } from './template.ts';

const base = { image: 'debian', user: 'root', env: {}, workdir: null, steps: [] };

test('steps are told to the builder as root, each in its place, with environment and directory', () => {
  const steps = ['apt-get install -y make', 'cd /srv\nmake all\n', 'echo a \\'];
  expect(dockerfileOf({ ...base, user: 'app', env: { A: 'b "c" $d \\e' }, workdir: '/srv/my app', steps })).toBe(`FROM debian
USER root
ENV A="b \\"c\\" \\$d \\\\e"
WORKDIR "/srv/my app"
RUN apt-get install -y make
RUN <<HUTCH_END_OF_STEP
set -e
cd /srv
make all

HUTCH_END_OF_STEP
RUN <<HUTCH_END_OF_STEP
set -e
echo a \\
HUTCH_END_OF_STEP
USER app
`);
});

test('each line of a step is that step, and no other line is', () => {
  const step = fc.array(fc.constantFrom('a', 'b c', '', 'd \\'), { minLength: 1, maxLength: 4 }).map((lines) => lines.join('\n'));
  fc.assert(
    fc.property(
      fc.array(step, { maxLength: 6 }),
      fc.dictionary(fc.constantFrom('A', 'B'), fc.constant('v')),
      fc.boolean(),
      (steps, env, hasDir) => {
        const of = { ...base, env, workdir: hasDir ? '/w' : null, steps };
        const lines = dockerfileOf(of).split('\n');
        let now = -1;
        for (const [at, line] of lines.entries()) {
          if (line.startsWith('RUN ')) now += 1;
          const isAfter = at >= lines.length - 2;
          expect(stepAtLine(of, at + 1)).toBe(now < 0 || isAfter ? null : now);
        }
      },
    ),
  );
});

test('what cannot be told to the builder is refused by its name', () => {
  expect(stepsRefusal({ ...base, env: { A: 'b\nc' } })).toBeNull();
  expect(stepsRefusal({ ...base, env: { A: 'b\nc' }, steps: ['true'] })).toContain('env.A has several lines');
  expect(stepsRefusal({ ...base, steps: ['true', ' '] })).toContain('steps.1');
  expect(stepsRefusal({ ...base, steps: ['a\nHUTCH_END_OF_STEP\nb'] })).toContain('steps.0');
});

test('how many are kept ready is a number, or two', () => {
  expect(['4', '4..16', '0'].map((text) => parseWarmth(text))).toEqual([
    { min: 4, max: 4 },
    { min: 4, max: 16 },
    { min: 0, max: 0 },
  ]);
  expect(['', '-1', '4..', '..4', '4-16', 'x', '4...5', '99999'].map((text) => parseWarmth(text))).toEqual(Array(8).fill(null));
  expect([shownWarmth({ min: 4, max: 4 }), shownWarmth({ min: 1, max: 2 })]).toEqual(['4', '1..2']);
});

test('as many are wanted as were handed out lately, within the bounds', () => {
  fc.assert(
    fc.property(fc.nat(64), fc.nat(64), fc.nat(200), (one, other, handedOut) => {
      const warm = { min: Math.min(one, other), max: Math.max(one, other) };
      const wanted = warmWanted(warm, handedOut);
      expect(wanted).toBeGreaterThanOrEqual(warm.min);
      expect(wanted).toBeLessThanOrEqual(warm.max);
      if (handedOut >= warm.min && handedOut <= warm.max) expect(wanted).toBe(handedOut);
    }),
  );
});
