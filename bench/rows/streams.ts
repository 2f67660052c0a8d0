// Many bytes: a command's output, and files both ways, against the same bytes over a port that nobody
// speaks a protocol on.
import type { Socket } from 'node:net';
import type { Sandbox } from '../../src/sdk/sandbox.ts';
import type { BareGuest } from '../bare/guest.ts';
import type { Bench, Measurement } from '../context.ts';
import { pair, type Row } from '../harness.ts';

const MIB = 2 ** 20;
const FILE = '/root/bench-file';
const TARGET = 0.8;
const CHUNK = Buffer.alloc(64 * 1024, 0x5a);

const rate = (bytes: number, ms: number): number => bytes / MIB / (ms / 1000);

async function received(port: Socket, bytes: number): Promise<void> {
  let left = bytes;
  await new Promise<void>((resolve, reject) => {
    const onData = (chunk: Buffer) => {
      left -= chunk.byteLength;
      if (left > 0) return;
      port.off('data', onData).off('close', reject);
      resolve();
    };
    port.on('data', onData).on('close', reject);
  });
}

async function rawOut(guest: BareGuest, mebibytes: number): Promise<number> {
  const all = received(guest.port, mebibytes * MIB);
  const started = performance.now();
  const done = guest.run(`dd if=/dev/zero of=$(echo /dev/vport*p1) bs=64k count=${mebibytes * 16} 2>/dev/null`);
  await all;
  const took = performance.now() - started;
  await done;
  return rate(mebibytes * MIB, took);
}

/** What a program's output costs without Hutch: the pipe, and then the port. */
async function pipedOut(guest: BareGuest, mebibytes: number): Promise<number> {
  const all = received(guest.port, mebibytes * MIB);
  const started = performance.now();
  const done = guest.run(
    `dd if=/dev/zero bs=64k count=${mebibytes * 16} 2>/dev/null | dd of=$(echo /dev/vport*p1) bs=64k iflag=fullblock 2>/dev/null`,
  );
  await all;
  const took = performance.now() - started;
  await done;
  return rate(mebibytes * MIB, took);
}

async function rawIn(guest: BareGuest, mebibytes: number): Promise<number> {
  const started = performance.now();
  const done = guest.run(`head -c ${mebibytes * MIB} <$(echo /dev/vport*p1) >/dev/null`);
  for (let sent = 0; sent < mebibytes * MIB; sent += CHUNK.byteLength) {
    if (!guest.port.write(CHUNK)) await new Promise((resolve) => guest.port.once('drain', resolve));
  }
  await done;
  return rate(mebibytes * MIB, performance.now() - started);
}

/** What a disk takes without any port, in the guest alone. Zeros: QEMU leaves holes for them, so the disk gets nothing. */
async function synced(guest: BareGuest, mebibytes: number): Promise<number> {
  const started = performance.now();
  await guest.run(`dd if=/dev/zero of=${FILE} bs=64k count=${mebibytes * 16} conv=fsync 2>/dev/null`);
  return rate(mebibytes * MIB, performance.now() - started);
}

async function drained(stream: AsyncIterable<Uint8Array>, bytes: number): Promise<void> {
  let left = bytes;
  for await (const chunk of stream) left -= chunk.byteLength;
  if (left !== 0) throw new Error(`${bytes - left} bytes came, ${bytes} were expected`);
}

async function stdoutRate(sandbox: Sandbox, mebibytes: number): Promise<number> {
  const started = performance.now();
  await using process = await sandbox.spawn(['dd', 'if=/dev/zero', 'bs=64k', `count=${mebibytes * 16}`, 'status=none']);
  await drained(process.stdout, mebibytes * MIB);
  await process.exit;
  return rate(mebibytes * MIB, performance.now() - started);
}

export async function readRate(sandbox: Sandbox, mebibytes: number): Promise<number> {
  const started = performance.now();
  await drained(await sandbox.files.readStream(FILE), mebibytes * MIB);
  return rate(mebibytes * MIB, performance.now() - started);
}

export async function writeRate(sandbox: Sandbox, mebibytes: number): Promise<number> {
  async function* content() {
    for (let sent = 0; sent < mebibytes * MIB; sent += CHUNK.byteLength) yield CHUNK;
  }
  const started = performance.now();
  await sandbox.files.write(FILE, content());
  return rate(mebibytes * MIB, performance.now() - started);
}

type Way = {
  readonly what: string;
  readonly baselineName: string;
  readonly raw: (guest: BareGuest, mebibytes: number) => Promise<number>;
  readonly ours: (sandbox: Sandbox, mebibytes: number) => Promise<number>;
  /** Before the first sample. */
  readonly ready?: (sandbox: Sandbox, mebibytes: number) => Promise<unknown>;
  readonly note: string;
  /** Another thing to compare with, of which nothing is aimed at. */
  readonly beside?: Pick<Way, 'baselineName' | 'raw' | 'note'>;
};

/** Each in a sandbox of its own: what one leaves in the guest's memory is not the next one's. */
async function stream(bench: Bench, { what, baselineName, raw, ours, ready, note, beside }: Way): Promise<readonly Row[]> {
  const guest = await bench.guest();
  await using sandbox = await bench.place.hutch.create();
  const mebibytes = bench.pick({ quick: 4, usual: 512, long: 512 });
  await ready?.(sandbox, mebibytes);
  return [
    await pair({
      what: `${what}, ${mebibytes} MiB`,
      unit: 'MiB/s',
      baselineName,
      runs: bench.runs(3, 1),
      target: `≥ ${TARGET}×`,
      meets: (ratio) => ratio >= TARGET,
      baseline: () => raw(guest, mebibytes),
      candidate: () => ours(sandbox, mebibytes),
      note,
    }),
    ...(beside === undefined
      ? []
      : [
          await pair({
            what: `${what}, ${mebibytes} MiB`,
            unit: 'MiB/s',
            baselineName: beside.baselineName,
            runs: bench.runs(3, 1),
            target: 'reported',
            meets: () => null,
            baseline: () => beside.raw(guest, mebibytes),
            candidate: () => ours(sandbox, mebibytes),
            note: beside.note,
          }),
        ]),
  ];
}

const STDOUT: Way = {
  what: 'stdout',
  baselineName: 'raw bytes over the same port',
  raw: rawOut,
  ours: stdoutRate,
  note: 'Bound by the guest under emulation: the bytes go through a pipe (a copy in, a copy out, and pages made for each), which the raw bytes do not, and then as those over the port, in writes of 32 KiB, the most that it takes. The pipe alone takes the emulated processor twice what the port takes (470 to 550 ms for 128 MiB, and 220 to 250): no reader of a program’s output can reach the target under emulation, and of QEMU’s time for Hutch’s (about 760 ms) the two are nine tenths. Beside QEMU the daemon and the client want a processor, and there are two. Tried: a pipe and a read of 1 MiB (64 KiB before: a change of process for each), frames of 256 KiB written from the ring (no copy of our own), a window of 1 MiB, no event for each write that the port has taken; in the daemon one memory for all reads and payloads that are used again (more than half of its time was the collector); the same in the client. Not used: splice into the port, whose pages must be copied all the same while the history holds them, and go out by 4 KiB; a socket in place of the pipe, behind which /dev/stdout cannot be opened. Options of the guest’s kernel that were tried: no zeroing of what it allocates (a tenth to a seventh less for pipe and port alike, but that is a guard of the guest’s), no mitigations, no memory cgroups, no SMAP, no checks of copies, another preemption, copying without `rep movsq` (nothing, or worse).',
  beside: {
    baselineName: 'two dd, a pipe between them, to the same port',
    raw: pipedOut,
    note: 'What a program’s output gets that another one in the guest reads and writes to the port: the pipe is on both sides.',
  },
};
const READ: Way = {
  what: 'read a file',
  baselineName: 'raw bytes over the same port',
  raw: rawOut,
  ours: readRate,
  ready: writeRate,
  note: 'A file as large as the guest’s memory: it is read from the emulated disk as well, which the raw bytes are not. Of a file of 4 MiB and more, what is not in the page cache is read past it, in blocks of 1 MiB, and each frame is written from where it was read: against raw bytes in turn, QEMU’s processor time for 128 MiB went from 2.8 times theirs to 2.3. What is cached is read into the frame itself, 256 KiB at a time. Not used: sendfile, whose splice into the port takes the pages out of the cache, and sends them by 4 KiB.',
};
const WRITE: Way = {
  what: 'write a file',
  baselineName: 'raw bytes into the same port',
  raw: rawIn,
  ours: writeRate,
  note: 'Written beside, synced and renamed: it is on the host’s disk at the end, which the raw bytes are not. The port gives at most 4 KiB at a time, to anybody: receiving is now most of it. Past the first 4 MiB the file goes to the disk in whole blocks of 1 MiB, past the guest’s page cache, whose pages cost the emulated processor about five times what the disk does: QEMU’s processor time for a file of 128 MiB is half of what it was. Tried: a window of 1 MiB instead of 256 KiB, and syncing in parts while more comes, of which no gain could be told from the noise.',
  beside: {
    baselineName: 'dd conv=fsync in a bare guest',
    raw: synced,
    note: 'What a program in the guest gets that writes zeros through the page cache and syncs: no port, and QEMU leaves holes for zeros, so the host’s disk gets nothing.',
  },
};

export const STREAMS: readonly Measurement[] = [
  { name: 'stdout', about: 'output of a command, 512 MiB', rows: (bench) => stream(bench, STDOUT) },
  { name: 'read', about: 'reading a file, 512 MiB', rows: (bench) => stream(bench, READ) },
  { name: 'write', about: 'writing a file, 512 MiB', rows: (bench) => stream(bench, WRITE) },
];
