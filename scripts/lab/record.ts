// The last whole run of the lab, as it stands in docs/test-runs.md below the runs of everything else.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';

const TEST_RUNS = 'docs/test-runs.md';
const HEADING = '\n## The lab\n';

export function record(said: readonly string[], seed: number): void {
  const text = existsSync(TEST_RUNS) ? readFileSync(TEST_RUNS, 'utf8') : '# Long test runs\n';
  const at = text.indexOf(HEADING);
  const commit = spawnSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).stdout.trim();
  const own = [
    HEADING,
    `\`./dev lab test --long\` at ${commit}, ${new Date().toISOString().slice(0, 16)}Z, seed ${seed}. [What it is](lab.md).`,
    '',
    '```text',
    ...said,
    '```',
    '',
  ];
  writeFileSync(TEST_RUNS, `${(at < 0 ? text : text.slice(0, at)).trimEnd()}\n${own.join('\n')}`);
}
