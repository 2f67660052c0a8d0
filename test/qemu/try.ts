// Runs sandboxes through the QEMU backend by hand and prints what each stage took:
//   node test/qemu/try.ts [RUNS] [COMMAND…]

import { testOperation } from '../support/operation.ts';
import { configuredAgent, qemuUnderTest, say } from './fixture.ts';
import { outputOf } from './guest-command.ts';

const [runs = '3', ...argv] = process.argv.slice(2);
const log = {
  debug() {},
  info() {},
  warn: (facts: object, sentence: string) => say(`warn: ${sentence} ${JSON.stringify(facts)}`),
  error() {},
};
const op = testOperation({ log, onProgress: ({ step, detail }) => say(`  … ${step} ${detail ?? ''}`) });
await using it = await qemuUnderTest();
const { backend, host } = it;
const ms = (since: number): string => `${(host.monotonicMs() - since).toFixed(0)} ms`;

let since = host.monotonicMs();
await backend.prepare(op, it.plan());
say(`prepare ${ms(since)}`);
for (let run = 0; run < Number(runs); run += 1) {
  const plan = it.plan();
  since = host.monotonicMs();
  await backend.create(op, plan);
  const created = ms(since);
  const started = await backend.start(op, plan);
  const startedIn = ms(since);
  using agent = await configuredAgent(op, it, plan, started);
  const configured = ms(since);
  const { stdout, stderr, exit } = await outputOf(op, agent, argv.length > 0 ? argv : ['/bin/true']);
  const stages = Object.entries(started.stagesMs).map(([name, took]) => `${name} ${took.toFixed(0)}`);
  say(
    `create ${created}, start ${startedIn} (${stages.join(', ')}), configured ${configured}, command ended ${ms(since)} with ${exit.code}`,
  );
  if (run === 0) {
    const again = host.monotonicMs();
    await outputOf(op, agent, ['/bin/true']);
    say(`  a second command: ${ms(again)}`);
  }
  if (stdout !== '' || stderr !== '') say(`${stdout}${stderr}`);
  say(`  uses ${JSON.stringify(await backend.stats(op, plan))}`);
  since = host.monotonicMs();
  await backend.kill(op, plan, 'gently');
  await backend.remove(op, plan);
  say(`  killed and removed in ${ms(since)}`);
}
