import fc from 'fast-check';
import { expect, test } from 'vitest';
import { isPreviewHost, parsePreviewHost, previewHost } from './preview.ts';

const DOMAIN = 'hutch.localhost';
const ID = 'sbx0123456789abcdefg';

test('the host of a shared port is one label, and is read as it was made', () => {
  const names = fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/);
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 65_535 }), names, (port, name) => {
      const host = previewHost(port, { id: ID, name }, DOMAIN);
      expect(host.split('.')[0]?.length).toBeLessThanOrEqual(63);
      const read = parsePreviewHost(`${host.toUpperCase()}:4880`, DOMAIN);
      expect([name, ID]).toContain(read?.name);
      expect(read?.port).toBe(port);
    }),
  );
  for (const host of [
    'hutch.localhost',
    '3000.hutch.localhost',
    '0-web.hutch.localhost',
    '70000-web.hutch.localhost',
    'a.3000-web.hutch.localhost',
    '3000-web.example.com',
    '',
  ])
    expect(parsePreviewHost(host, DOMAIN), host).toBeNull();
  for (const host of ['hutch.localhost:1', 'x.HUTCH.localhost', '3000-web.hutch.localhost.'])
    expect(isPreviewHost(host, DOMAIN), host).toBe(true);
  for (const host of ['localhost', 'nothutch.localhost', 'hutch.localhost.example.com', '127.0.0.1'])
    expect(isPreviewHost(host, DOMAIN), host).toBe(false);
});
