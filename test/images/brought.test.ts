// An image that comes with a snapshot: taken up under the digest of its bytes, read by nobody but a guest and a reader without rights, and made anew
// for this machine; what is another, or none, leaves nothing.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { newOpId } from '../../src/domain/ids.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { newOperation } from '../../src/host/operation.ts';
import { Blobs } from '../../src/images/blobs.ts';
import { takeRootfs } from '../../src/images/brought.ts';
import { listImages, openImage, verifyImage } from '../../src/images/image.ts';
import { imagePaths } from '../../src/images/layout.ts';

const dir = mkdtempSync(join(tmpdir(), 'hutch-brought-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const host = nodeHost();
const quiet = { debug() {}, info() {}, warn() {}, error() {} };
const op = newOperation({ id: newOpId((count) => host.randomBytes(count)), actor: 'daemon', log: quiet });
const paths = imagePaths(join(dir, 'data'));
const parts = { host, paths, blobs: new Blobs(host, paths) };
const CONFIG = { env: { A: 'b' }, entrypoint: [], command: ['sh'], workdir: null, user: null, stopSignal: null, exposedPorts: [] };
const SAID = { config: CONFIG, createdAtMs: 7 };
const FREE = 2 ** 30;

mkdirSync(join(dir, 'root/etc'), { recursive: true });
writeFileSync(join(dir, 'root/etc/issue'), 'one\n');
writeFileSync(join(dir, 'root/large'), Buffer.alloc(3_000_000, 'x'));
const made = join(dir, 'made.squashfs');
const packed = await host.run(op, ['gensquashfs', '--quiet', '--compressor', 'lz4', '--pack-dir', join(dir, 'root'), made]);
if (packed.exitCode !== 0) throw new Error(new TextDecoder().decode(packed.stderr));

/** A file that its reader may read, with its digest. */
async function given(bytes: Uint8Array): Promise<{ readonly path: string; readonly digest: string }> {
  const path = join(dir, 'given');
  writeFileSync(path, bytes, { mode: 0o644 });
  return { path, digest: `sha256:${await host.sha256(op, path)}` };
}

const outcome = async (bytes: Uint8Array, change: { readonly digest?: string; readonly bytesMax?: number } = {}) =>
  await takeRootfs(op, parts, { ...(await given(bytes)), said: SAID, bytesMax: FREE, ...change });

test('an image that comes with a snapshot is what a guest knows, and read by this machine only as it has packed it itself', async () => {
  const bytes = readFileSync(made);
  const { digest } = await given(bytes);
  const image = await outcome(bytes);
  expect(image.record).toMatchObject({ digest, config: CONFIG, createdAtMs: 7, name: null });
  expect([image.rootDigest, image.source.kind]).toEqual([digest, 'snapshot']);
  expect(readFileSync(image.guestPath).equals(bytes)).toBe(true);
  const read = await host.run(op, ['rdsquashfs', '--cat', '/etc/issue', image.path]);
  expect(new TextDecoder().decode(read.stdout)).toBe('one\n');
  expect(image.path).not.toBe(image.guestPath);
  await verifyImage(op, host, paths, digest);
  // Each of its two files is looked at.
  for (const path of [image.guestPath, image.path]) {
    const whole = readFileSync(path);
    await host.remove(op, path);
    writeFileSync(path, Buffer.from(whole).fill(1, 200, 300));
    await expect(verifyImage(op, host, paths, digest)).rejects.toThrow(/has changed/);
    writeFileSync(path, whole);
    await verifyImage(op, host, paths, digest);
    writeFileSync(path, whole.subarray(1));
    await expect(openImage(op, host, paths, digest)).rejects.toThrow(/bytes/);
    writeFileSync(path, whole);
  }
  rmSync(paths.images, { recursive: true });
});

test('one that is another, none, cut off or larger than there is room is refused, and leaves nothing', async () => {
  const bytes = readFileSync(made);
  await expect(outcome(bytes, { digest: `sha256:${'0'.repeat(64)}` })).rejects.toThrow(/not the one that it names/);
  await expect(outcome(Buffer.alloc(4096))).rejects.toThrow(/no file system that guests read/);
  await expect(outcome(Buffer.concat([bytes.subarray(0, 96), Buffer.alloc(9_000, 0xff)]))).rejects.toThrow(/image in it is damaged/);
  await expect(outcome(bytes.subarray(0, bytes.byteLength - 5_000))).rejects.toThrow(/image in it is damaged/);
  await expect(outcome(bytes, { bytesMax: 1_000_000 })).rejects.toThrow(/more than there is room for/);
  expect(await listImages(op, host, paths)).toEqual([]);
  expect((await host.list(op, paths.staging)).filter((name) => name !== 'publish.lock')).toEqual([]);
});
