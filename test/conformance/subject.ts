// One backend under the suite: a daemon over it, what it says that it can do, and the short ways in which
// the tests ask. Everything goes through the API, as a user's program would.
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { Capabilities } from '../../src/backends/backend.ts';
import type { ErrorCode } from '../../src/domain/errors.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import type { Input } from '../../src/services/verbs.ts';
import { realBootFiles } from '../qemu/fixture.ts';
import { ApiError, DaemonUnderTest, type SandboxView } from '../support/daemon-under-test.ts';
import { DockerEngine } from '../support/docker-engine.ts';
import { testOperation } from '../support/operation.ts';

const ROOT = join(import.meta.dirname, '../..');
const run = promisify(execFile);

/** Every backend that the suite knows. One that this machine cannot run is named as not run. */
export const SUBJECTS = ['reference', 'qemu', 'docker', 'gvisor'] as const;
export type SubjectName = (typeof SUBJECTS)[number];
export type Step = 'create' | 'start' | 'kill' | 'inspect' | 'pause' | 'resume';

type Probe = { readonly ok: true; readonly can: Capabilities } | { readonly ok: false; readonly why: string };

export class Subject implements AsyncDisposable {
  readonly name: SubjectName;
  readonly daemon: DaemonUnderTest;
  readonly can: Capabilities;
  /** For the backend that needs one. */
  readonly #engine: DockerEngine | null;
  /** The daemon that has the sandboxes, where `daemon` only hands on to it. */
  readonly #behind: DaemonUnderTest | null = null;
  #box: Promise<SandboxView> | undefined;

  private constructor(
    name: SubjectName,
    daemon: DaemonUnderTest,
    can: Capabilities,
    engine: DockerEngine | null,
    behind: DaemonUnderTest | null = null,
  ) {
    this.name = name;
    this.#engine = engine;
    this.#behind = behind;
    this.daemon = daemon;
    this.can = can;
  }

  /** Behind another daemon that hands on to it: the role `vm`, and all the rest. */
  async through(): Promise<Subject> {
    const { ready } = this.daemon;
    const front = await DaemonUnderTest.start({
      env: { HUTCH_ROLES_VM: `unix:${ready.socketPath}`, HUTCH_ROLES_VM_KEY: ready.ownerKeyPath },
    });
    return new Subject(this.name, front, this.can, this.#engine, this.daemon);
  }

  /** Of the daemon that has the backend. */
  get home(): string {
    return (this.#behind ?? this.daemon).home;
  }

  /** The reason, when this machine cannot run that backend. */
  static async start(name: SubjectName, env: Readonly<Record<string, string>> = {}): Promise<Subject | string> {
    if (process.getuid?.() !== 0) return 'only root can run this suite';
    if (name !== 'reference') await realBootFiles(testOperation(), nodeHost()); // made once for all tests
    await using undo = new AsyncDisposableStack();
    const engine = name === 'docker' ? await DockerEngine.start() : null;
    if (engine !== null) undo.use(engine);
    const daemon = await DaemonUnderTest.start({
      entry: join(import.meta.dirname, 'daemon.ts'),
      env: {
        HUTCH_TEST_BACKEND: name,
        NODE_COMPILE_CACHE: join(ROOT, '.tools/compile-cache'),
        ...(name === 'reference' ? {} : { HUTCH_SANDBOX_BACKEND: name }),
        HUTCH_SANDBOX_NETWORK: 'none',
        HUTCH_SANDBOX_STOP_GRACE: '2s',
        ...engine?.env,
        ...env,
      },
      async before(home) {
        await mkdir(join(home, 'faults'));
        await mkdir(join(home, 'data'), { mode: 0o711 });
        if (name === 'reference') return;
        for (const part of ['images', 'kernels', 'initramfs'])
          await run('cp', ['-al', join(ROOT, '.tools/data', part), join(home, 'data')]);
      },
    });
    const probe = JSON.parse(await readFile(join(daemon.home, 'capabilities.json'), 'utf8')) as Probe;
    if (probe.ok) {
      undo.move();
      return new Subject(name, daemon, probe.can, engine);
    }
    await daemon[Symbol.asyncDispose]();
    return probe.why;
  }

  /** A small sandbox without a network; what it is not told is the daemon's default. */
  async make(input: Input<'sandbox.create'> = {}): Promise<SandboxView> {
    return await this.daemon.call('sandbox.create', { network: 'none', ...input });
  }

  /** One that runs, for all tests that leave it as it was. */
  async box(): Promise<string> {
    this.#box ??= this.make({ name: 'box', env: { FROM_SANDBOX: 'yes', SHARED: 'sandbox' } });
    return (await this.#box).id;
  }

  async get(ref: string): Promise<SandboxView> {
    return await this.daemon.call('sandbox.get', { ref });
  }

  async remove(...refs: readonly string[]): Promise<void> {
    await Promise.all(refs.map((ref) => this.daemon.call('sandbox.delete', { ref, force: true })));
  }

  /** What a shell script prints. @throws when it fails */
  async sh(ref: string, script: string, more: Record<string, unknown> = {}): Promise<string> {
    const { exitCode, stdout, stderr } = await this.daemon.run(ref, ['sh', '-c', script], more);
    if (exitCode !== 0) throw new Error(`${script}: ${exitCode}: ${stderr}`);
    return stdout;
  }

  /** From now on that step of that sandbox (or of any) fails or hangs, until the result is disposed of. */
  async fault(how: 'fail' | 'hang', step: Step, id?: string): Promise<AsyncDisposable> {
    const path = join(this.home, 'faults', id === undefined ? step : `${step}-${id}`);
    await writeFile(path, how);
    return { [Symbol.asyncDispose]: () => rm(path, { force: true }) };
  }

  /** Into `error`: an end that failed, and nobody can tell whether its process lives. */
  async doubt(id: string): Promise<void> {
    await using _kill = await this.fault('fail', 'kill', id);
    await using _inspect = await this.fault('fail', 'inspect', id);
    const code = await codeOf(this.daemon.call('sandbox.stop', { ref: id, force: true }));
    if (code !== 'unavailable') throw new Error(`a stop that cannot end anything was answered with ${code}`);
  }

  /** Destroys what the disk of a sandbox that is stopped cannot be without; gives what mends it. Null: this backend has no disks. */
  async damage(id: string): Promise<((hint: string | null) => Promise<void>) | null> {
    if (this.#engine !== null) {
      const container = (await this.#engine.containers()).find(({ Labels }) => Labels['dev.hutch.sandbox'] === id);
      const { body } = await this.#engine.ask('GET', `/containers/${container?.Id ?? ''}/json`);
      const { UpperDir: dir } = (body as { GraphDriver: { Data: { UpperDir: string } } }).GraphDriver.Data;
      await rename(dir, `${dir}.away`);
      return () => rename(`${dir}.away`, dir);
    }
    const dir = join(this.home, 'data/sandboxes', id, 'vm');
    const path = [join(dir, 'disk.img'), join(dir, 'layer/disk.img')].find((one) => existsSync(one));
    if (path === undefined) return null;
    await using file = await open(path, 'r+');
    await file.write(Buffer.alloc(4_096), 0, 4_096, 0); // the superblock; there are copies further in
    return async (hint) => {
      const told = /e2fsck -f (\S+?)\)/.exec(hint ?? '')?.[1] ?? 'nothing';
      await run('e2fsck', ['-f', '-y', told]).catch((error: { code: number }) => {
        if (error.code !== 1) throw error; // 1: it has mended something
      });
    };
  }

  /** The process of a sandbox that runs, as the ledger has it. */
  async pidOf(id: string): Promise<number> {
    let pid: number | null = null;
    for await (const entry of this.daemon.lines('ledger.list', {})) {
      const { sandboxId, evidence } = entry as { sandboxId: string; evidence: string | null };
      const [, digits] = /^pid (\d+)/.exec(evidence ?? '') ?? [];
      if (sandboxId === id && digits !== undefined) pid = Number(digits);
    }
    if (pid === null) throw new Error(`the ledger knows no process of ${id}`);
    return pid;
  }

  /** Sandboxes of which something lies on disk. */
  async kept(): Promise<readonly string[]> {
    return (await readdir(join(this.home, 'data/sandboxes'))).sort();
  }

  /** What the services did to the backend against its contract. */
  async violations(): Promise<string> {
    return await readFile(join(this.home, 'violations'), 'utf8').catch(() => '');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.daemon[Symbol.asyncDispose]();
      await this.#behind?.[Symbol.asyncDispose]();
    } finally {
      await this.#engine?.[Symbol.asyncDispose]();
    }
  }
}

/** `done`, or the code with which it was refused. @throws what is no answer of the API */
export async function codeOf(call: Promise<unknown>): Promise<'done' | ErrorCode> {
  try {
    await call;
    return 'done';
  } catch (error) {
    if (error instanceof ApiError) return error.code as ErrorCode;
    throw error;
  }
}

/** The refusal itself. @throws when it was none */
export async function refusal(call: Promise<unknown>): Promise<{ code: string; message: string; hint: string | null }> {
  try {
    await call;
  } catch (error) {
    if (error instanceof ApiError) return error.body;
    throw error;
  }
  throw new Error('it was not refused');
}
