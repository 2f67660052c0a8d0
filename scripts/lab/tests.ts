// `./dev lab test`: runs the scenarios in order on one outer VM. Prints "lab: ok NAME" or "lab: FAILED NAME"
// for each, which is what `./dev test` counts. With --long what was said is kept in docs/test-runs.md.
import { conformanceScenario } from './conformance.ts';
import { containerScenarios } from './containers.ts';
import { installedScenarios } from './installed.ts';
import { down, livingPid, up } from './machine.ts';
import { record } from './record.ts';
import { savedScenarios } from './saved.ts';
import { LEFT, scenarios } from './scenarios.ts';
import { allSaid, expect, say, step } from './steps.ts';

type Options = {
  readonly long: boolean;
  /** The conformance suite whole. */
  readonly suite: boolean;
  /** A part of a scenario's name; what the scenarios share then stays for the next. */
  readonly filter: string;
  readonly seed: number;
};

export async function runLabTests({ long, suite, filter, seed }: Options): Promise<boolean> {
  const known = [
    ...scenarios,
    ...savedScenarios,
    ...installedScenarios,
    ...containerScenarios,
    conformanceScenario({ seed, all: suite, long: suite && long }),
  ];
  const wanted = filter === '' ? known.filter((one) => long || one.long !== true) : known.filter(({ name }) => name.includes(filter));
  if (wanted.length === 0)
    throw new Error(`no scenario of the lab has "${filter}" in its name:\n${known.map(({ name }) => name).join('\n')}`);
  const wasUp = livingPid() !== null;
  await up();
  let ok = true;
  const run = async (name: string, test: () => Promise<void>) => {
    const started = performance.now();
    try {
      await test();
      say(`lab: ok ${name} (${Math.round((performance.now() - started) / 1000)} s)`);
    } catch (error) {
      ok = false;
      say(`lab: FAILED ${name}\n${error instanceof Error ? error.message : String(error)}`);
      await step(
        'what the daemon said last',
        'tail -n 6 /data/*/log/hutchd.log /flaky/h/log/hutchd.log 2>/dev/null | cut -c1-600 >&2; false',
      ).catch((evidence: unknown) => console.log(String(evidence)));
    }
  };
  try {
    for (const { name, run: scenario } of wanted) await run(name, scenario);
    if (filter === '')
      await run('nothing is left of them', async () => {
        const left = await step('sandboxes, daemon, data', LEFT);
        expect(/none\n$/.test(left), 'no process is left', left);
      });
  } finally {
    if (!wasUp) down();
  }
  if (long && filter === '') record(allSaid(), seed);
  return ok;
}
