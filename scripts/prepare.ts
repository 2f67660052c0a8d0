// Prepares kernel, initramfs and default image without a daemon, for whoever works on Hutch:
//   node scripts/prepare.ts [--data DIR] [--agent FILE]
// Prints the boot files as JSON. The daemon does the same by itself on first use.
import { randomBytes } from 'node:crypto';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import type { BootFiles } from '../src/backends/backend.ts';
import { newOpId } from '../src/domain/ids.ts';
import { nodeHost } from '../src/host/node-host.ts';
import { newOperation } from '../src/host/operation.ts';
import { prepareDefaultImage } from '../src/images/default-image.ts';
import { prepareInitramfs } from '../src/images/initramfs.ts';
import { prepareKernel } from '../src/images/kernel.ts';
import { imagePaths } from '../src/images/layout.ts';

const root = resolve(import.meta.dirname, '..');
const { values } = parseArgs({
  options: {
    data: { type: 'string', default: join(root, '.tools', 'data') },
    agent: { type: 'string', default: join(root, 'prebuilt', 'x86_64', 'hutch-agent') },
  },
});

const host = nodeHost();
const write = (facts: object, sentence: string) => console.error(sentence, facts);
let line = '';
const op = newOperation({
  id: newOpId(randomBytes),
  actor: 'daemon',
  log: { debug() {}, info: write, warn: write, error: write },
  onProgress: ({ step, detail, done, total }) => {
    const next = `${step}: ${detail ?? ''}${done === undefined || total === undefined ? '' : ` ${Math.floor((100 * done) / total)} %`}`;
    if (next !== line) console.error(next);
    line = next;
  },
});
const paths = imagePaths(resolve(values.data));
const image = await prepareDefaultImage(op, host, paths);
const kernel = await prepareKernel(op, host, paths);
const initramfs = await prepareInitramfs(op, host, paths, { kernel, agentPath: resolve(values.agent) });
const boot: BootFiles = {
  kind: 'machine',
  imagePath: image.path,
  imageDigest: image.record.digest,
  kernelPath: kernel.vmlinuxPath,
  kernelDigest: kernel.record.digest,
  initramfsPath: initramfs.path,
  initramfsDigest: initramfs.digest,
};
console.log(JSON.stringify({ boot, image: image.record, kernel: kernel.record }, null, 2));
