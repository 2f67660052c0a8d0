import { expect, test } from 'vitest';
import { confidential, NO_PACKAGE_SETTINGS, withMirrors } from '../../domain/package-settings.ts';
import { aptMirrors, aptSettings, isLoopback, npmSettings, pipSettings, plainApt } from './package-files.ts';

test('of pip’s files only where packages come from is lent, and the later file comes before', () => {
  const first = `[global]
index_url = https://old.example/simple
cert = /etc/own.pem
extra-index-url =
    https://a.example/simple
    https://b.example/simple
find-links = /opt/wheels https://wheels.example/
[install]
user = yes
[search]
index = https://search.example
`;
  const { text, certificates } = pipSettings([first, '[global]\nindex-url: https://new.example/simple\nproxy=http://127.0.0.1:3128\n']);
  expect(text).toBe(
    '[global]\nindex-url = https://new.example/simple\nextra-index-url = https://a.example/simple\n    https://b.example/simple\nfind-links = https://wheels.example/\n',
  );
  expect(certificates).toEqual(['/etc/own.pem']);
});

test('of npm’s files the tokens of mirrors are lent, and none that is for publishing', () => {
  const text = `registry=https://npm.example/repo/
@own:registry = "https://own.example/"
//npm.example/repo/:_authToken=\${TOKEN}
//registry.npmjs.org/:_authToken=publishing
//elsewhere.example/:_authToken=elsewhere
; a comment
init-author-name=Somebody
cafile=/etc/own.pem
https-proxy=http://localhost:3128
noproxy=.example
`;
  const { text: kept, certificates } = npmSettings([text], (name) => (name === 'TOKEN' ? 'read-only' : undefined));
  expect(kept.split('\n').sort().join('\n').trim()).toBe(
    `//npm.example/repo/:_authToken=read-only
@own:registry=https://own.example/
noproxy=.example
omit-lockfile-registry-resolved=true
registry=https://npm.example/repo/`,
  );
  expect(certificates).toEqual(['/etc/own.pem']);
  expect(npmSettings(['//registry.npmjs.org/:_authToken=publishing\n'], () => undefined).text).toBe('');
});

test('of apt’s configuration proxies and times are lent, but no address of this machine itself', () => {
  const dump = `Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::http::Proxy::local.example "DIRECT";
Acquire::https::Proxy "http://127.0.0.1:3142";
Acquire::https::CAInfo "/etc/own.pem";
Acquire::Retries "3";
Acquire::AllowInsecureRepositories "1";
APT::Get::Assume-Yes "1";
`;
  expect(aptSettings(dump)).toEqual({
    text: 'Acquire::http::Proxy "http://proxy.example:3128";\nAcquire::http::Proxy::local.example "DIRECT";\nAcquire::Retries "3";\n',
    certificates: ['/etc/own.pem'],
  });
});

const DEBIAN = 'ID=debian\nVERSION_CODENAME=bookworm\n';

test('a mirror of this machine’s own distribution stands for its archive, in both forms of the list, and for nothing else', () => {
  const list =
    'deb [signed-by=/x] http://mirror.example/debian/ bookworm main\ndeb http://mirror.example/security bookworm-security main\n';
  const mirrors = aptMirrors(DEBIAN, [list]);
  expect(mirrors).toEqual([
    { of: 'debian', uri: 'http://mirror.example/debian' },
    { of: 'debian-security', uri: 'http://mirror.example/security' },
  ]);
  const stanza = (uri: string) => `Types: deb deb-src\nURIs: ${uri}\nSuites: bookworm bookworm-updates\nComponents: main\n`;
  expect(aptMirrors(DEBIAN, [stanza('https://m.example/debian')])).toEqual([{ of: 'debian', uri: 'https://m.example/debian' }]);
  for (const other of ['http://deb.debian.org/debian', 'http://localhost/debian', 'file:/srv/debian'])
    expect(aptMirrors(DEBIAN, [stanza(other)]), other).toEqual([]);
  expect(aptMirrors('ID=fedora\n', [list])).toEqual([]);
  const image = `${stanza('http://deb.debian.org/debian')}\n${stanza('http://deb.debian.org/debian-security')}\ndeb [arch=amd64] https://other.example/debian stable main\n`;
  expect(withMirrors(image, mirrors)).toBe(
    `${stanza('http://mirror.example/debian')}\n${stanza('http://mirror.example/security')}\ndeb [arch=amd64] https://other.example/debian stable main\n`,
  );
  expect(withMirrors(image, [])).toBe(image);
});

test('an address of this machine is one however it is written', () => {
  for (const own of ['localhost', 'http://127.0.0.1:3128', '127.9.9.9:80', 'http://[::1]:1/', 'http://user:pw@LOCALHOST/'])
    expect(isLoopback(own), own).toBe(true);
  for (const other of ['http://proxy.example:3128', '10.0.0.1:3128', 'DIRECT', 'http://localhost.example/'])
    expect(isLoopback(other), other).toBe(false);
});

test('passwords and tokens are known by themselves, addresses as a whole', () => {
  const { addresses, credentials } = confidential({
    env: { http_proxy: 'http://me:s%40cret@proxy.example:3128/', no_proxy: '.example' },
    files: new Map([
      ['npmrc', Buffer.from('//npm.example/:_authToken=abcdef\n')],
      ['ca.pem', Buffer.from('-----BEGIN CERTIFICATE-----\nhttp://in-a-comment.example\n')],
    ]),
    aptMirrors: [{ of: 'debian', uri: 'http://mirror.example/debian' }],
  });
  expect(addresses).toEqual([
    'http://me:s%40cret@proxy.example:3128',
    'http://mirror.example/debian',
    'proxy.example:3128',
    'mirror.example',
  ]);
  expect(credentials).toEqual(['me:s%40cret', 's%40cret', 's@cret', 'abcdef'].sort((a, b) => b.length - a.length));
  expect(confidential(NO_PACKAGE_SETTINGS)).toEqual({ addresses: [], credentials: [] });
});

test('plain files of apt are read as apt-config reads them, and others are left to it', () => {
  const plain = '# proxy\nAcquire::http::Proxy "http://p:1/";\n\n  Acquire::Retries "3" ;\n// x\nAPT::Never-MarkAuto-Sections:: "x";\n';
  expect(plainApt(plain)).toBe(
    'Acquire::http::Proxy "http://p:1/";\nAcquire::Retries "3";\n'.concat('APT::Never-MarkAuto-Sections:: "x";\n'),
  );
  for (const more of [
    'Acquire { http { Proxy "x"; }; };',
    'Acquire::Retries 3;',
    '#clear Acquire;',
    '#include <x>',
    'A "b"; C "d";',
    '/* x */',
  ])
    expect(plainApt(`${plain}${more}\n`), more).toBeNull();
});
