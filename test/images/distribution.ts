// A distribution with one small kernel package, at the wire where apt, dpkg-deb and mmdebstrap are
// run: it answers the commands that src/images gives them, refuses all others, and writes real files.
// Everything else is the real host.
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { zstdCompressSync } from 'node:zlib';
import type { Host, RunOptions, RunResult } from '../../src/host/host.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { GUEST_MODULES, OPTIONAL_MODULES } from '../../src/images/modules.ts';
import { testOperation } from '../support/operation.ts';
import { bzImage, tinyKernel, tinyModule } from './payloads.ts';

const KERNEL = 'linux-image-6.1.0-56-cloud-amd64';
const RELEASE = '6.1.0-56-cloud-amd64';

export type Distribution = AsyncDisposable & {
  readonly host: Host;
  readonly dataDir: string;
  /** The commands that were given, first words only. */
  readonly commands: string[];
  /** Answers of apt and mmdebstrap that differ from the usual. */
  readonly answers: Map<string, () => RunResult>;
  /** The bytes of the package as apt will deliver it. */
  package: Uint8Array;
  vmlinuz: Uint8Array;
};

export const ok = (stdout = ''): RunResult => ({ exitCode: 0, stdout: Buffer.from(stdout), stderr: Buffer.from('') });
export const failed = (stderr: string): RunResult => ({ exitCode: 100, stdout: Buffer.from(''), stderr: Buffer.from(stderr) });

export async function distribution(): Promise<Distribution> {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-images-'));
  const kernel = tinyKernel({ padding: 3000 });
  const real = nodeHost();
  const signed = Buffer.from('the package, as the lists know it');
  const self: Distribution = {
    host: { ...real, run: (op, argv, options) => answer(argv, options) ?? real.run(op, argv, options) },
    dataDir: join(dir, 'data'),
    commands: [],
    answers: new Map(),
    package: signed,
    vmlinuz: bzImage(zstdCompressSync(kernel), kernel.byteLength),
    [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }),
  };
  return self;

  /** Null for what is not the distribution's. */
  function answer(argv: readonly string[], options: RunOptions | undefined): Promise<RunResult> | null {
    if (argv.includes('mmdebstrap')) return bootstrap(argv, options);
    const words = argv.filter((word, index) => !word.startsWith('-') && !(argv[index - 1] ?? '').match(/^-o$/));
    const command = words
      .slice(0, 2)
      .join(' ')
      .replace(/ %v%n$/, ' dump');
    if (!/^(apt-get|apt-cache|apt-config|dpkg-deb|mmdebstrap)\b/.test(command)) return null;
    self.commands.push(command);
    const other = self.answers.get(command);
    if (other !== undefined) return Promise.resolve(other());
    switch (command) {
      case 'apt-cache show':
        return Promise.resolve(show(argv.at(-1) ?? ''));
      case 'apt-get download':
        options?.onOutput?.(Buffer.from('dlstatus:1:50.0:Retrieving\n'), 'stdout');
        return writeFile(join(options?.cwd ?? '', `${KERNEL}_6.1.192-2_amd64.deb`), self.package).then(() => ok());
      case 'apt-get indextargets':
        return Promise.resolve(ok('Debian|bookworm|main|http://mirror.example/debian/\n'));
      case 'apt-config dump':
        return Promise.resolve(ok('http://proxy.example:3128\n'));
      case 'apt-get update':
        return Promise.resolve(ok());
      default:
        if (command.startsWith('dpkg-deb')) return unpack(argv.at(-1) ?? '').then(() => ok());
        throw new Error(`the distribution does not know: ${argv.join(' ')}`);
    }
  }

  /** A root with one file, as a tar file where it was asked for. */
  async function bootstrap(argv: readonly string[], options: RunOptions | undefined): Promise<RunResult> {
    self.commands.push('mmdebstrap');
    const other = self.answers.get('mmdebstrap');
    if (other !== undefined) return other();
    const scratch = options?.env?.['TMPDIR'] ?? '';
    const [target = ''] = argv.filter((word) => word.endsWith('.tar.part'));
    await mkdir(join(scratch, 'root/etc'), { recursive: true });
    await writeFile(join(scratch, 'root/etc/hostname'), 'debian\n');
    return real.run(testOperation(), ['tar', '--create', '--mtime=@0', '--file', target, '--directory', join(scratch, 'root'), '.']);
  }

  function show(name: string): RunResult {
    if (name === 'linux-image-cloud-amd64') return ok(stanza(name, KERNEL));
    return name === KERNEL ? ok(stanza(name, 'kmod, linux-base')) : failed('E: No packages found');
  }

  function stanza(name: string, depends: string): string {
    const sum = createHash('sha256').update(signed).digest('hex');
    return `Package: ${name}\nVersion: 6.1.192-2\nArchitecture: amd64\nDepends: ${depends}\nSize: ${signed.byteLength}\nSHA256: ${sum}\n`;
  }

  async function unpack(tree: string): Promise<void> {
    const modules = join(tree, 'lib/modules', RELEASE);
    const built: string[] = ['kernel/fs/ext4/ext4.ko'];
    const files = [...GUEST_MODULES, ...OPTIONAL_MODULES].filter((name) => name !== 'ext4').map((name) => `kernel/${name}.ko`);
    await mkdir(join(tree, 'boot'), { recursive: true });
    await writeFile(join(tree, 'boot', `vmlinuz-${RELEASE}`), self.vmlinuz);
    await mkdir(join(modules, 'kernel'), { recursive: true });
    await writeFile(join(modules, 'modules.order'), files.join('\n'));
    await writeFile(join(modules, 'modules.builtin'), built.join('\n'));
    for (const file of files) {
      await mkdir(dirname(join(modules, file)), { recursive: true });
      // One of them packed, as Ubuntu does.
      if (file.includes('overlay')) await writeFile(join(modules, `${file}.zst`), zstdCompressSync(tinyModule(['depends='])));
      else await writeFile(join(modules, file), tinyModule(['depends=']));
    }
  }
}
