// Images for measuring: what is in them is text and machine code, no two files alike, in files as large as a
// distribution has them; as an OCI layout, for those who are compared.
import { readFileSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { digestOf, image, type MadeImage, type Member, TYPES, tar } from '../test/images/archives.ts';

const WORDS = 'the of and to in is for that sandbox image layer file system kernel return const import from static void int if else'.split(
  ' ',
);
const MIB = 2 ** 20;

/** Numbers that look random, the same in each run. */
function numbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** A layer of so many bytes: half of it text, half pieces of a program. */
export function layerOf(seed: number, bytes: number): Buffer {
  const next = numbers(seed);
  const program = readFileSync(process.execPath);
  const members: Member[] = [];
  for (let total = 0, at = 0; total < bytes; at += 1) {
    const size = Math.floor(2 ** (10 + 9 * next()));
    const from = Math.floor(next() * (program.byteLength - size));
    const content = at % 2 === 0 ? program.subarray(from, from + size) : text(next, size);
    members.push({ path: `usr/share/part${seed}/${at % 40}/file-${at}`, content, mode: 0o644 });
    total += size;
  }
  return tar(...members);
}

function text(next: () => number, size: number): Buffer {
  const parts: string[] = [];
  for (let length = 0; length < size; ) {
    const word = next() < 0.2 ? Math.floor(next() * 1e9).toString(36) : (WORDS[Math.floor(next() * WORDS.length)] ?? '');
    parts.push(word);
    length += word.length + 1;
  }
  return Buffer.from(parts.join(' ').slice(0, size));
}

/** What an image needs to run anything: busybox, and names for what is run. */
export function busybox(mark: string): Buffer {
  return tar(
    { path: 'bin/busybox', mode: 0o755, content: readFileSync('/bin/busybox') },
    ...['sh', 'true', 'cat'].map((name): Member => ({ path: `bin/${name}`, type: 'symlink', link: 'busybox' })),
    { path: 'etc/mark', content: mark },
  );
}

export function smallFiles(count: number): Buffer {
  const next = numbers(count);
  return tar(
    ...Array.from(
      { length: count },
      (_, at): Member => ({ path: `srv/${at % 300}/file-${at}`, content: text(next, 200 + Math.floor(next() * 1_800)) }),
    ),
  );
}

export const made = (layers: readonly Buffer[]): MadeImage => image(layers, { config: { Cmd: ['/bin/true'], Env: ['PATH=/bin'] } });

export const mebibytes = (count: number): number => count * MIB;

/** As `oci:DIR:TAG` for skopeo and umoci. */
export async function writeLayout(dir: string, images: Readonly<Record<string, MadeImage>>): Promise<void> {
  const blobs = join(dir, 'blobs', 'sha256');
  await mkdir(blobs, { recursive: true });
  const manifests: object[] = [];
  for (const [tag, { manifest, blobs: all }] of Object.entries(images)) {
    for (const bytes of [...all.values(), manifest]) await writeFile(join(blobs, digestOf(bytes).slice(7)), bytes);
    manifests.push({
      mediaType: TYPES.manifest,
      digest: digestOf(manifest),
      size: manifest.byteLength,
      annotations: { 'org.opencontainers.image.ref.name': tag },
    });
  }
  await writeFile(join(dir, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
  await writeFile(join(dir, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests }));
}
