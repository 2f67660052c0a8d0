// Every frame between a sandbox and its passt, with the moment at which it passed: passt itself writes them down.
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';

export type Frame = { readonly atMs: number; readonly bytes: Uint8Array };

export type Frames = Disposable & {
  /** Where programs are to be looked for, so that passt is the one that writes down. */
  readonly path: string;
  /** Of each passt that a sandbox has had, in order; empty: none of them has seen anything. */
  of(id: string): readonly Frame[];
};

/** `$id`: the sandbox that its log file is of. Whoever passt runs as may write there. */
const PASST = `#!/bin/sh
real=$(PATH=\${PATH#*:} command -v passt)
case "$*" in *--fd*) ;; *) exec "$real" "$@" ;; esac
id=$(printf %s "$*" | grep -o 'sbx[0-9a-z]*' | head -1)
exec "$real" --pcap "$(dirname "$0")/frames/$id-$(date +%s%N)" "$@"
`;

export function watchFrames(): Frames {
  const dir = mkdtempSync(join(tmpdir(), 'hutch-frames-'));
  const files = join(dir, 'frames');
  mkdirSync(files);
  chmodSync(dir, 0o755);
  chmodSync(files, 0o1777);
  writeFileSync(join(dir, 'passt'), PASST, { mode: 0o755 });
  return {
    path: [dir, process.env['PATH']].join(delimiter),
    of: (id) =>
      readdirSync(files)
        .filter((name) => name.startsWith(`${id}-`))
        .sort()
        .flatMap((name) => framesIn(readFileSync(join(files, name)))),
    [Symbol.dispose]: () => rmSync(dir, { recursive: true }),
  };
}

const FILE_HEADER_BYTES = 24;
const FRAME_HEADER_BYTES = 16;

/** Of a file as libpcap writes it, in this machine's order of bytes, with microseconds; one that is being written may end anywhere. */
function framesIn(file: Buffer): Frame[] {
  const found: Frame[] = [];
  for (let at = FILE_HEADER_BYTES; at + FRAME_HEADER_BYTES <= file.byteLength; ) {
    const [seconds, micros, bytes] = [file.readUInt32LE(at), file.readUInt32LE(at + 4), file.readUInt32LE(at + 8)];
    at += FRAME_HEADER_BYTES + bytes;
    if (at > file.byteLength) break;
    found.push({ atMs: seconds * 1000 + micros / 1000, bytes: file.subarray(at - bytes, at) });
  }
  return found;
}

const ETHERNET_BYTES = 14;
const [IPV4, TCP] = [0x0800, 6];

/** The ports of a segment of TCP over IPv4; null: it is something else. */
export function portsOf({ bytes }: Frame): { readonly from: number; readonly to: number } | null {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.byteLength < ETHERNET_BYTES + 40 || view.readUInt16BE(12) !== IPV4 || view[ETHERNET_BYTES + 9] !== TCP) return null;
  const at = ETHERNET_BYTES + ((view[ETHERNET_BYTES] ?? 0) & 0x0f) * 4;
  return { from: view.readUInt16BE(at), to: view.readUInt16BE(at + 2) };
}

/** Whether a hardware address stands anywhere in it: its sender, its receiver, or what ARP says. */
export function names({ bytes }: Frame, mac: string): boolean {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).includes(Buffer.from(mac.replaceAll(':', ''), 'hex'));
}
