// The last whole run of the lab, as it stands in docs/test-runs.md below the runs of everything else.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { merged, TEST_RUNS } from '../test-runs.ts';

export function record(said: readonly string[], seed: number): void {
  const page = existsSync(TEST_RUNS) ? readFileSync(TEST_RUNS, 'utf8') : '';
  const commit = spawnSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).stdout.trim();
  const text = [
    `\`./dev lab test --long\` at ${commit}, ${new Date().toISOString().slice(0, 16)}Z, seed ${seed}. [What it is](lab.md).`,
    '',
    '```text',
    ...said,
    '```',
  ];
  writeFileSync(TEST_RUNS, merged(page, [['The lab', text.join('\n')]]));
}
