import fc from 'fast-check';
import { expect, test } from 'vitest';
import { hostSide, type PublishedPort, parsePublish, sharePort, showPublished } from './published-port.ts';

const parsed = (text: string) => {
  const result = parsePublish(text);
  return result.ok ? result.value.map(showPublished) : result.message;
};

test('a port to publish is written as with docker, on the loopback unless an address is given', () => {
  expect(parsed('8080:80')).toEqual(['127.0.0.1:8080->80']);
  expect(parsed('8080:80/tcp')).toEqual(['127.0.0.1:8080->80']);
  expect(parsed('80')).toEqual(['127.0.0.1:0->80']);
  expect(parsed('0:80')).toEqual(['127.0.0.1:0->80']);
  expect(parsed('0.0.0.0:8080:80')).toEqual(['0.0.0.0:8080->80']);
  expect(parsed('127.0.0.1::80')).toEqual(['127.0.0.1:0->80']);
  expect(parsed('[::1]:8080:80')).toEqual(['[::1]:8080->80']);
  expect(parsed('8000-8002:9000-9002')).toEqual(['127.0.0.1:8000->9000', '127.0.0.1:8001->9001', '127.0.0.1:8002->9002']);
});

test('what is no port to publish is refused with what is wrong with it', () => {
  for (const text of ['', ':', 'x', '80:', ':80', '1.2.3.4:80', '8080:80/', '::1:80:80', '80 ', `${'1'.repeat(200)}`, '-1:80'])
    expect(parsed(text), text).toMatch(/is no port to publish/);
  for (const text of ['0', '8080:0', '65536:80', '80:65536', '8002-8000:1-3']) expect(parsed(text), text).toMatch(/from 1 to 65535/);
  expect(parsed('8000-8001:80')).toMatch(/same length/);
  expect(parsed('1000-2000')).toMatch(/at most 64/);
  expect(parsed('53:53/udp')).toMatch(/only TCP/);
});

const address = fc.constantFrom('127.0.0.1', '10.0.0.5', '0.0.0.0', '::', '::1');
const port = fc.record({
  hostAddress: address,
  hostPort: fc.integer({ min: 0, max: 65_535 }),
  guestPort: fc.integer({ min: 1, max: 65_535 }),
});

test('what is shown of a published port means the same port again', () => {
  fc.assert(
    fc.property(port, (one: PublishedPort) => {
      expect(parsePublish(`${hostSide(one)}:${one.guestPort}`)).toEqual({ ok: true, value: [one] });
    }),
  );
});

test('any text is ports or a refusal, and never more ports than a sandbox may have', () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.stringMatching(/^[0-9.:[\]/-]{0,24}(tcp|udp)?$/)), (text) => {
      const result = parsePublish(text);
      if (!result.ok) return;
      expect(result.value.length).toBeGreaterThan(0);
      expect(result.value.length).toBeLessThanOrEqual(64);
      for (const { hostPort, guestPort } of result.value) {
        expect(hostPort >= 0 && hostPort <= 65_535 && guestPort >= 1 && guestPort <= 65_535).toBe(true);
      }
    }),
  );
});

test('two ports share one where either address stands for the other, whichever is asked first', () => {
  const at = (hostAddress: string, hostPort = 80) => ({ hostAddress, hostPort });
  expect(sharePort(at('127.0.0.1'), at('0.0.0.0'))).toBe(true);
  expect(sharePort(at('127.0.0.1'), at('::'))).toBe(true);
  expect(sharePort(at('127.0.0.1'), at('10.0.0.5'))).toBe(false);
  expect(sharePort(at('::1'), at('0.0.0.0'))).toBe(false);
  expect(sharePort(at('0.0.0.0', 80), at('0.0.0.0', 81))).toBe(false);
  fc.assert(fc.property(port, port, (a, b) => sharePort(a, b) === sharePort(b, a)));
  fc.assert(fc.property(port, (a) => sharePort(a, a)));
});
