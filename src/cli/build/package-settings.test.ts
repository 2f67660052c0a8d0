// Which certificates a build is lent, of a machine made of files.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { packageSettings } from './package-settings.ts';

const certificate = (name: string): string => `-----BEGIN CERTIFICATE-----\n${name}\n-----END CERTIFICATE-----`;
const [A, B, C] = ['a', 'b', 'c'].map(certificate);
const BUNDLE = '/etc/ssl/certs/ca-certificates.crt';
const ANCHOR = '/usr/local/share/ca-certificates/own.crt';

async function lent(files: Readonly<Record<string, string>>, env: Readonly<Record<string, string>> = {}): Promise<string | undefined> {
  const root = mkdtempSync(join(tmpdir(), 'hutch-machine-'));
  onTestFinished(() => rmSync(root, { recursive: true, force: true }));
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  return (await packageSettings({ env, root })).settings.files.get('ca.pem')?.toString();
}

test('a machine’s bundle of certificates is lent as it is where it has all that is named; else with what it lacks', async () => {
  const bundle = `# all\n${A}\n${B}\n`;
  expect(await lent({ [BUNDLE]: bundle })).toBeUndefined(); // nothing of its own
  expect(await lent({ [BUNDLE]: bundle }, { SSL_CERT_FILE: BUNDLE, PIP_CERT: BUNDLE })).toBe(bundle);
  expect(await lent({ [BUNDLE]: bundle, [ANCHOR]: `${B}\n` })).toBe(bundle);
  expect(await lent({ [BUNDLE]: bundle, [ANCHOR]: `${C}\n` }, { SSL_CERT_FILE: BUNDLE })).toBe(`${A}\n${B}\n${C}\n`);
  expect(await lent({ [BUNDLE]: bundle, [ANCHOR]: 'no certificate\n' })).toBeUndefined();
});
