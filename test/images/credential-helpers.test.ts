// Logins that Docker's credential helpers keep, with programs that do what such a helper may do: also hang, lie, or be missing.
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { Credentials } from '../../src/images/registry/credentials.ts';
import { testOperation } from '../support/operation.ts';
import { image, tar } from './archives.ts';
import { place } from './place.ts';
import { fakeRegistry } from './registry.ts';

const op = testOperation();
/** The product's own bound is longer: a person may be asked. */
const HELPER_MS = 3_000;
const LOGIN = { username: 'me', password: 'se"cret\n' };

/** `docker-credential-NAME` for each, and a configuration that names one of them. */
async function helpers(programs: Readonly<Record<string, string>>, config: object) {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-helpers-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const bin = join(dir, 'bin');
  await mkdir(bin);
  await mkdir(join(dir, '.docker'));
  for (const [name, script] of Object.entries(programs)) {
    await writeFile(join(bin, `docker-credential-${name}`), `#!/bin/sh\n${script}\n`);
    await chmod(join(bin, `docker-credential-${name}`), 0o755);
  }
  const file = join(dir, '.docker', 'config.json');
  await writeFile(file, JSON.stringify(config));
  const PATH = `${bin}:${process.env['PATH'] ?? ''}`;
  return { dir, PATH, file, credentials: new Credentials(nodeHost(), { HOME: dir, PATH }, HELPER_MS) };
}

/** One as they all are: what is stored is given back for that very name. */
const KEEPER = `kept="$HOME/kept"
case "$1" in
  store) cat > "$kept" ;;
  get) read -r name; grep -q "\\"$name\\"" "$kept" 2>/dev/null && cat "$kept" || { echo 'credentials not found in native keychain'; exit 1; } ;;
  erase) read -r name; rm "$kept" ;;
esac`;

test('a login is kept by the helper that Docker uses for its registry, given back, and erased; no file of ours has it', async () => {
  const { dir, file, credentials } = await helpers({ keeper: KEEPER }, { credHelpers: { 'registry.test:5000': 'keeper' }, other: 1 });
  expect(await credentials.of(op, 'registry.test:5000')).toBeNull();
  expect(await credentials.keep(op, 'registry.test:5000', LOGIN)).toBe('the credential helper keeper');
  expect(JSON.parse(await readFile(join(dir, 'kept'), 'utf8'))).toEqual({
    ...{ ServerURL: 'registry.test:5000', Username: LOGIN.username, Secret: LOGIN.password },
  });
  expect(await credentials.of(op, 'registry.test:5000')).toEqual(LOGIN);
  expect(await credentials.of(op, 'elsewhere.test')).toBeNull();
  expect(await credentials.forget(op, 'registry.test:5000')).toBe(true);
  expect(await credentials.forget(op, 'registry.test:5000')).toBe(false);
  expect(JSON.parse(await readFile(file, 'utf8'))).toEqual({ credHelpers: { 'registry.test:5000': 'keeper' }, other: 1 });
});

test('a helper has the environment of its user, and nothing of it that is Hutch’s own', async () => {
  const { dir, PATH } = await helpers(
    { cloud: `cat > /dev/null; printf '{"Username":"%s","Secret":"%s"}' "$AWS_PROFILE" "$HUTCH_API_KEY."` },
    {
      credsStore: 'cloud',
    },
  );
  const credentials = new Credentials(nodeHost(), { HOME: dir, PATH, AWS_PROFILE: 'work', HUTCH_API_KEY: 'k' }, HELPER_MS);
  expect(await credentials.of(op, 'registry.test')).toEqual({ username: 'work', password: '.' });
});

test('a token that a helper gives in place of a password is one; a helper that cannot forget says so', async () => {
  const token = `case "$1" in get) echo '{"Username":"<token>","Secret":"t0ken"}' ;; *) exit 1 ;; esac`;
  const { credentials } = await helpers({ token }, { credsStore: 'token' });
  expect(await credentials.of(op, 'registry.test')).toEqual({ identityToken: 't0ken' });
  await expect(credentials.forget(op, 'registry.test')).rejects.toMatchObject({
    message: expect.stringContaining('failed to erase a login'),
  });
});

test('a helper that is missing, fails, lies or has a name that is a path is named where its login is wanted, and nowhere else', async () => {
  const made = await helpers({ liar: 'echo "no JSON; secret=s3cret"', failing: 'echo "dbus: s3cret" >&2; exit 1' }, {});
  await using registry = await fakeRegistry();
  await using here = await place({ dir: made.dir, programs: made.PATH });
  registry.put('open', '1', image([tar({ path: 'file', content: 'x' })]));
  registry.answer = (request, response) => {
    if (!(request.url ?? '').startsWith('/v2/private/')) return false;
    response.writeHead(401, { 'WWW-Authenticate': 'Basic realm="r"' }).end();
    return true;
  };
  const cases = {
    absent: 'which is not installed',
    liar: 'gave what is no login',
    failing: 'failed to get a login',
    '../liar': 'not installed',
  };
  for (const [helper, why] of Object.entries(cases)) {
    await writeFile(made.file, JSON.stringify({ credsStore: helper }));
    const refusal: unknown = await here.pull(`${registry.name}/private:1`).catch((error: unknown) => error);
    expect(refusal, helper).toMatchObject({ code: 'permission_denied', hint: expect.stringMatching(`${why}.*hutch image login`) });
    expect(JSON.stringify(refusal)).not.toContain('s3cret');
  }
  await here.pull(`${registry.name}/open:1`);
});

test('a helper that hangs is ended', { timeout: 60_000 }, async () => {
  const { dir, credentials } = await helpers({ slow: 'echo $$ > "$HOME/pid"; exec sleep 1000' }, { credsStore: 'slow' });
  const outcome: unknown = await credentials.of(op, 'registry.test').catch((error: unknown) => error);
  expect(outcome).toMatchObject({ code: 'deadline_exceeded', message: expect.stringContaining('the credential helper slow') });
  const pid = Number(await readFile(join(dir, 'pid'), 'utf8'));
  expect(() => process.kill(pid, 0)).toThrow('ESRCH');
});
