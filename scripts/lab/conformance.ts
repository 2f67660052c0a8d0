// The conformance suite in the lab: a sample of the tests, chosen by the seed, or all of them.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import { type Scenario, withWayOut } from './scenarios.ts';
import { expect, say, show, step } from './steps.ts';

const SUITE = 'test/conformance';
/** Each takes some seconds of the lab's clock. */
const SAMPLE = 6;
/** Minutes of it each, or of the reference backend alone: run with --long. */
const NOT_IN_A_SAMPLE = ['sequences.ts', 'limits.ts', 'reference.test.ts'];

/** The titles as they stand in the sources; those that a test makes up from values are in the whole suite alone. */
function titles(): readonly string[] {
  return readdirSync(SUITE)
    .filter((name) => name.endsWith('.ts') && !NOT_IN_A_SAMPLE.includes(name))
    .flatMap((name) => [...readFileSync(join(SUITE, name), 'utf8').matchAll(/^ {2,4}test\('([^'\n]+)'/gm)].map((match) => match[1] ?? ''));
}

function sample(seed: number): readonly string[] {
  const left = [...titles()];
  let state = seed >>> 0 || 1;
  const next = (): number => {
    // xorshift32: the same seed chooses the same tests.
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
  return Array.from({ length: Math.min(SAMPLE, left.length) }, () => left.splice(next() % left.length, 1)[0] ?? '');
}

const escaped = (title: string): string => title.replace(/[$()*+.?[\\\]^{|}']/g, '.');

/** A minute in which nothing else runs is more than a minute here: the clock counts the waits of QEMU's own disk too. */
const VITEST = '.tools/lab-node node_modules/vitest/vitest.mjs run --maxWorkers=1 --testTimeout=240000 --hookTimeout=480000';

/** `long`: with as many random sequences as `./dev test --long` tries. */
export function conformanceScenario({
  seed,
  all,
  long,
}: {
  readonly seed: number;
  readonly all: boolean;
  readonly long: boolean;
}): Scenario {
  const chosen = all ? [] : sample(seed);
  return {
    name: all ? 'the conformance suite passes for QEMU with KVM' : 'a sample of the conformance suite passes for QEMU with KVM',
    run: async () => {
      for (const title of chosen) say(`lab:   chosen: ${title}`);
      const only = all ? '' : `-t '${chosen.map(escaped).join('|')}'`;
      const suite = () =>
        step(
          'the suite',
          `mkdir -p /hutch/tmp && chmod 711 /hutch/tmp && export TMPDIR=/hutch/tmp HUTCH_TEST_SEED=${seed} HUTCH_TEST_REQUIRE_BACKEND=qemu${long ? ' HUTCH_TEST_LONG=1' : ''}
        { while sleep 1; do pgrep -a qemu-system | grep -o 'accel [a-z]*.* -smp [^ ]*'; done > /hutch/tmp/seen; } & watcher=$!
        ${VITEST} --reporter=verbose ${SUITE}/qemu.test.ts ${only}; code=$?
        kill $watcher; sort /hutch/tmp/seen | uniq -c; rm -rf /hutch/tmp; exit $code`,
          all ? { live: /[✓×↓] /, secondsMax: 14_400 } : { live: /[✓×] / },
        );
      const said = await withWayOut(suite);
      const told = stripVTControlCharacters(said);
      const passed = Number(/Tests\s+(?:\d+ failed \| )?(\d+) passed/.exec(told)?.[1] ?? 0);
      expect(all ? passed > SAMPLE : passed >= chosen.length, 'every test that was chosen ran', told);
      expect(/accel kvm/.test(told), 'its machines ran under KVM', told);
      show(
        told
          .split('\n')
          .filter((line) => /^ *Tests |accel/.test(line))
          .join('\n'),
      );
    },
  };
}
