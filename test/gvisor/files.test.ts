// Large files of a sandbox on gVisor: the daemon reads and writes them where they lie on this host, and lets go of them whenever the
// sandbox's disk is to be let go of.
import { createHash, randomBytes } from 'node:crypto';
import { readdirSync, readlinkSync } from 'node:fs';
import { afterAll, expect, test } from 'vitest';
import { Hutch } from '../../src/sdk/hutch.ts';
import { Subject } from '../conformance/subject.ts';
import { eventually } from '../support/eventually.ts';

const MIB = 2 ** 20;
const content = randomBytes(24 * MIB + 321);
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
async function* pieces(bytes: Buffer = content) {
  for (let at = 0; at < bytes.byteLength; at += 65_536) yield bytes.subarray(at, at + 65_536);
}

const subject = await Subject.start('gvisor');
if (typeof subject === 'string') test.skip(`gvisor: ${subject}`, () => {});
else {
  const { daemon } = subject;
  const hutch = Hutch.connect({ url: `unix:${daemon.ready.socketPath}`, apiKey: daemon.key });
  afterAll(async () => {
    hutch[Symbol.dispose]();
    await subject[Symbol.asyncDispose]();
  });
  /** Descriptors of the daemon that lead to a file of that sandbox whose path there begins so. */
  const held = (id: string, path: string): readonly string[] =>
    readdirSync(`/proc/${daemon.pid}/fd`).flatMap((fd) => {
      try {
        const link = readlinkSync(`/proc/${daemon.pid}/fd/${fd}`);
        return link.includes(`${id}/root${path}`) ? [link] : [];
      } catch {
        return []; // closed since
      }
    });

  test('a large file goes into a sandbox of gVisor and out of it where it lies, as the user who asks; what lies elsewhere is carried', {
    timeout: 120_000,
  }, async () => {
    const { id } = await subject.make({ diskMiB: 512 });
    const { files } = await hutch.sandbox(id);
    expect(await files.write('/srv/deep/file', pieces(), { mkdirs: true, user: 'nobody' }).catch(String)).toMatch(/permission|EACCES/i);
    let seen: readonly string[] = [];
    async function* watched() {
      for await (const piece of pieces()) {
        if (seen.length === 0) seen = held(id, '/tmp/.');
        yield piece;
      }
    }
    const written = await files.write('/tmp/file', watched(), { mode: 0o640, user: 'nobody', mtimeMs: 1_000_000 });
    expect(seen, 'it was written where it lies').not.toEqual([]);
    expect(written).toMatchObject({ size: content.byteLength, mode: 0o640, user: 'nobody', mtimeMs: 1_000_000 });
    expect(await subject.sh(id, 'sha256sum < /tmp/file; ls -A /tmp')).toBe(`${sha256(content)}  -\nfile\n`);
    expect(sha256(await files.read('/tmp/file'))).toBe(sha256(content));
    const part = await files.read('/tmp/file', { offset: 1_000_001, length: 5_000_003 });
    expect(part.equals(content.subarray(1_000_001, 6_000_004))).toBe(true);
    expect(await files.read('/tmp/file', { user: 'daemon' }).catch(String)).toMatch(/permission|EACCES/i);

    // What a program writes is in it from then on, on both sides.
    await subject.sh(id, 'printf more >> /tmp/file; cp -p /tmp/file /root/copy');
    const more = Buffer.concat([content, Buffer.from('more')]);
    for (const path of ['/tmp/file', '/root/copy']) expect(sha256(await files.read(path))).toBe(sha256(more));

    // Under another mount lies a file that looks the same from here.
    await subject.sh(
      id,
      'mkdir /mnt/m; head -c $(stat -c %s /tmp/file) /dev/zero > /mnt/m/file; chmod 640 /mnt/m/file; mount -t tmpfs none /mnt/m; cp /tmp/file /mnt/m/file',
    );
    expect(sha256(await files.read('/mnt/m/file'))).toBe(sha256(more));
    await files.write('/mnt/m/new', pieces());
    expect(await subject.sh(id, 'sha256sum < /mnt/m/new; umount /mnt/m; ls /mnt/m')).toBe(`${sha256(content)}  -\nfile\n`);

    // A path that leads through links is that of the file.
    await subject.sh(id, 'ln -s /root /mnt/way; ln -s ../mnt/way/copy /root/link');
    expect(sha256(await files.read('/root/link'))).toBe(sha256(more));

    // What was there stays until the new one is whole, and nothing else.
    async function* broken() {
      yield* pieces();
      throw new Error('the source is gone');
    }
    await expect(files.write('/tmp/file', broken())).rejects.toThrow();
    await eventually('nothing is left beside it', async () => (await subject.sh(id, 'ls -A /tmp')) === 'file\n');
    expect(await subject.sh(id, 'sha256sum < /tmp/file')).toContain(sha256(more));
    expect(await files.write('/root/full', full()).catch(String)).toMatch(/full|no space|was lost/i);
    await eventually('the daemon lets go of all', () => held(id, '/').length === 0);
    await subject.remove(id);

    async function* full() {
      const block = Buffer.alloc(MIB, 1);
      for (let sent = 0; sent < 1024; sent += 1) yield block;
    }
  });

  test('whoever reads a large file of gVisor holds up no snapshot, suspend, stop or start of its sandbox', {
    timeout: 180_000,
  }, async () => {
    const { id } = await subject.make();
    const sandbox = await hutch.sandbox(id);
    const large = Buffer.concat([content, content, content, content]);
    await sandbox.files.write('/root/large', pieces(large));
    /** Reads until the sockets are full, and no further. */
    const begun = async () => {
      const stream = (await sandbox.files.readStream('/root/large'))[Symbol.asyncIterator]();
      await stream.next();
      await eventually('the daemon reads it where it lies', () => held(id, '/root/large').length === 1);
      return stream;
    };
    const rest = async (stream: AsyncIterator<Uint8Array>): Promise<unknown> => {
      let bytes = 0;
      for (let next = await stream.next(); next.done !== true; next = await stream.next()) bytes += next.value.byteLength;
      return bytes;
    };
    const through = await begun();
    await daemon.call('snapshot.create', { ref: id, diskOnly: true });
    expect(await rest(through)).toBeGreaterThan(large.byteLength - 2 * MIB);
    for (const [ends, begins] of [
      ['sandbox.suspend', 'sandbox.resume'],
      ['sandbox.stop', 'sandbox.start'],
    ] as const) {
      const cut = await begun();
      await daemon.call(ends, { ref: id });
      expect(held(id, '/root/large')).toEqual([]);
      await daemon.call(begins, { ref: id });
      await expect(rest(cut)).rejects.toThrow();
      expect(sha256(await sandbox.files.read('/root/large'))).toBe(sha256(large));
    }
    await subject.remove(id);
  });
}
