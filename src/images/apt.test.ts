import { expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import { aptError, followDownload, parsePackageFacts } from './apt.ts';
import { parseMirrors, proxyVariables } from './debian-sources.ts';
import { followMmdebstrap } from './mmdebstrap-output.ts';

const op = testOperation();
const bytes = (text: string) => new TextEncoder().encode(text);
const failed = (stderr: string) => ({ exitCode: 100, stdout: bytes(''), stderr: bytes(stderr) });

const SHOWN = `Package: linux-image-6.1.0-56-cloud-amd64
Version: 6.1.192-2
Architecture: amd64
Depends: kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool
Description: Linux 6.1
 Depends: not a field
Size: 26713492
SHA256: ${'ab'.repeat(32)}

Package: another
`;

test('the first stanza of a package is read, alternatives and versions apart', () => {
  expect(parsePackageFacts(SHOWN)).toEqual({
    name: 'linux-image-6.1.0-56-cloud-amd64',
    version: '6.1.192-2',
    architecture: 'amd64',
    sizeBytes: 26713492,
    sha256: 'ab'.repeat(32),
    depends: ['kmod', 'linux-base', 'initramfs-tools', 'linux-initramfs-tool'],
  });
});

test.for([
  ['no checksum', SHOWN.replace(/^SHA256.*$/m, '')],
  ['a checksum of another form', SHOWN.replace(/^SHA256.*$/m, 'SHA256: abc')],
  ['a name that is a path', SHOWN.replace('linux-image', '../linux-image')],
  ['a version with a slash', SHOWN.replace('6.1.192-2', '6.1/192')],
  ['a size beyond all bounds', SHOWN.replace('26713492', '99999999999')],
  ['nothing at all', ''],
] as const)('a package with %s is not taken', ([, shown]) => {
  expect(parsePackageFacts(shown)).toBeNull();
});

test('the percentage of a download is read across chunks', () => {
  const seen: number[] = [];
  const follow = followDownload((percent) => seen.push(percent));
  for (const chunk of ['dlstatus:1:0.0000:Retr', 'ieving\ndlstatus:1:42.5', '000:Retrieving\rnoise\n', 'dlstatus:1:oops:x\n'])
    follow(bytes(chunk));
  expect(seen).toEqual([0, 42.5]);
});

test('an unreachable mirror is unavailable, names the host, and says what to do', () => {
  const error = aptError(
    op,
    failed(
      "W: noise\nE: Failed to fetch http://deb.example/x.deb  Temporary failure resolving 'deb.example'\nE: Unable to fetch some archives",
    ),
    'download package x',
  );
  expect(error).toMatchObject({ code: 'unavailable', hint: expect.stringContaining('it goes on where it stopped') });
  expect(error.message).toBe(
    "cannot download package x: Failed to fetch http://deb.example/x.deb Temporary failure resolving 'deb.example'",
  );
});

test('a full disk is told from everything else', () => {
  expect(aptError(op, failed('E: Write error - write (28: No space left on device)'), 'make it')).toMatchObject({
    code: 'resource_exhausted',
    message: 'cannot make it: the disk is full',
  });
});

test('a package that is not offered says so', () => {
  expect(aptError(op, failed('E: Unable to locate package nope'), 'download package nope')).toMatchObject({
    code: 'not_found',
    hint: 'run: apt-get update',
  });
});

test('a machine that forbids user namespaces is told what to install', () => {
  expect(aptError(op, failed('E: unable to pick chroot mode automatically (use --mode for manual selection)'), 'make it')).toMatchObject({
    code: 'failed_precondition',
    hint: expect.stringContaining('uidmap'),
  });
});

test('what is not understood keeps its exit code', () => {
  expect(aptError(op, failed(''), 'make it').message).toBe('cannot make it: it ended with exit code 100');
});

test("the machine's own mirrors are used for Debian's suites alone, and only where their form is plain", () => {
  const mirrors = parseMirrors(
    [
      'Debian|bookworm|main|http://mirror.example/debian/',
      'Debian|bookworm|main|http://second.example/debian/',
      'Debian|bookworm-security|main|https://mirror.example/security',
      'Debian|bookworm-updates|main|http://user:secret word@mirror.example/',
      'Debian|bookworm|contrib|http://contrib.example/',
      'Ubuntu|bookworm|main|http://ubuntu.example/',
      'Debian|trixie|main|http://trixie.example/',
      '',
    ].join('\n'),
  );
  expect([...mirrors]).toEqual([
    ['bookworm', 'http://mirror.example/debian'],
    ['bookworm-security', 'https://mirror.example/security'],
  ]);
});

test('what mmdebstrap prints becomes progress', () => {
  const seen: object[] = [];
  const follow = followMmdebstrap((step) => seen.push(step));
  const output = `I: automatically chosen mode: root
I: running apt-get update...
I: downloading packages with apt...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Need to get 3000 kB of archives.
Get:1 http://deb.example bookworm/main amd64 libc6 amd64 2.36 [2759 kB]
Get:2 http://deb.example bookworm/main amd64 bash amd64 5.2 [1491 kB]
I: installing essential packages...
Setting up libc6:amd64 (2.36) ...
Setting up bash (5.2) ...
Setting up one-more (1) ...
nobody understands this
`;
  for (let at = 0; at < output.length; at += 37) follow(bytes(output.slice(at, at + 37)));
  expect(seen).toEqual([
    { detail: 'fetching package lists' },
    { detail: 'downloading packages' },
    { detail: 'downloading packages', done: 2_759_000, total: 3_000_000, unit: 'bytes' },
    { detail: 'downloading packages', done: 3_000_000, total: 3_000_000, unit: 'bytes' },
    { detail: 'installing the base system' },
    { detail: 'installing libc6:amd64', done: 1, total: 2, unit: 'items' },
    { detail: 'installing bash', done: 2, total: 2, unit: 'items' },
    { detail: 'installing one-more', done: 2, total: 2, unit: 'items' },
  ]);
});

test('the user’s proxies reach downloads by the names that apt reads, whichever way they are written', () => {
  expect(proxyVariables({ http_proxy: 'http://one:1', HTTPS_PROXY: 'http://two:2', NO_PROXY: '', PATH: '/bin' })).toEqual({
    http_proxy: 'http://one:1',
    https_proxy: 'http://two:2',
  });
});
