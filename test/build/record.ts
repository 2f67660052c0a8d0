// Records what BuildKit makes of the Dockerfiles in corpus.ts, in test/vectors/dockerfiles.json. By hand, as root, with a buildkitd that
// runs: `BUILDKIT_HOST=unix:///… node test/build/record.ts [NAME…]`. Where buildctl and skopeo lie, PATH says.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { baseImage, CASES, type Case, filesOf, type Recorded, saidBy, writeContext } from './corpus.ts';
import { readSaved } from './saved.ts';

const VECTORS = join(import.meta.dirname, '../vectors/dockerfiles.json');
const OUTPUT_BYTES_MAX = 256 * 1024 * 1024;

const dir = mkdtempSync(join(tmpdir(), 'hutch-record-'));
try {
  writeFileSync(join(dir, 'base.tar'), baseImage());
  execFileSync('skopeo', ['copy', `tarball:${join(dir, 'base.tar')}`, `oci:${join(dir, 'base')}:1`], { stdio: 'ignore' });
  const index = JSON.parse(readFileSync(join(dir, 'base/index.json'), 'utf8')) as { manifests: { digest: string }[] };
  const digest = index.manifests[0]?.digest ?? '';
  const asked = process.argv.slice(2);
  const names = Object.keys(CASES).filter((name) => asked.length === 0 || asked.includes(name));
  const recorded: Record<string, Recorded> =
    asked.length > 0 && existsSync(VECTORS) ? (JSON.parse(readFileSync(VECTORS, 'utf8')) as Record<string, Recorded>) : {};
  for (const name of names) recorded[name] = await built(CASES[name] as Case, digest, name);
  writeFileSync(
    VECTORS,
    `{\n${Object.entries(recorded)
      .map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`)
      .join(',\n')}\n}\n`,
  );
} finally {
  rmSync(dir, { recursive: true, force: true });
}

async function built(each: Case, digest: string, name: string): Promise<Recorded> {
  const context = join(mkdtempSync(join(dir, 'case-')), 'context');
  await mkdir(context);
  await writeContext(context, each);
  const secrets = Object.entries(each.secrets ?? {}).flatMap(([id, value]) => {
    writeFileSync(join(dir, `secret-${id}`), value);
    return ['--secret', `id=${id},src=${join(dir, `secret-${id}`)}`];
  });
  const { status, stdout, stderr } = spawnSync(
    'buildctl',
    [
      ...['build', '--no-cache', '--progress', 'plain', '--frontend', 'dockerfile.v0', '--local', `context=${context}`],
      ...['--local', `dockerfile=${context}`, '--oci-layout', `base=${join(dir, 'base')}`],
      ...['--opt', `context:base:1=oci-layout://base@${digest}`, '--output', 'type=docker,dest=-', ...secrets],
      ...Object.entries(each.args ?? {}).flatMap(([key, value]) => ['--opt', `build-arg:${key}=${value}`]),
      ...(each.target === undefined ? [] : ['--opt', `target=${each.target}`]),
    ],
    { maxBuffer: OUTPUT_BYTES_MAX },
  );
  const isRefused = status !== 0;
  process.stdout.write(`${isRefused ? 'refused' : 'built  '} ${name}\n`);
  if (isRefused !== name.startsWith('refused')) process.stdout.write(`${stderr.toString().slice(-1_500)}\n`);
  if (isRefused) return null;
  const saved = await readSaved(stdout);
  return { config: saidBy(saved), files: await filesOf(saved) };
}
