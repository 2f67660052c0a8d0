// A Docker Engine of its own and a real daemon over it.
import { execFile } from 'node:child_process';
import { mkdir, rename, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { nodeHost } from '../../src/host/node-host.ts';
import { realBootFiles } from '../qemu/fixture.ts';
import { ApiError, DaemonUnderTest, type SandboxView } from '../support/daemon-under-test.ts';
import { DockerEngine, type EngineOptions } from '../support/docker-engine.ts';
import { testOperation } from '../support/operation.ts';
import { EngineDoor } from './door.ts';

const ROOT = join(import.meta.dirname, '../..');
const run = promisify(execFile);

/** Where the daemon looks for its Engine: a link that a test may lead elsewhere. */
const wayTo = (engine: DockerEngine): string => join(engine.dir, 'way.sock');

/** Where it looks for logins. */
export const dockerConfigOf = (engine: DockerEngine): string => join(engine.dir, 'config');

/** Gives a daemon the image that was made for all tests. */
export async function withImages(home: string): Promise<void> {
  await mkdir(join(home, 'data'), { mode: 0o711 });
  await run('cp', ['-al', join(ROOT, '.tools/data/images'), join(home, 'data')]);
}

export async function refused(call: Promise<unknown>): Promise<ApiError> {
  const error = await call.then(
    () => null,
    (cause: unknown) => cause,
  );
  if (error instanceof ApiError) return error;
  throw new Error(`it was not refused: ${String(error)}`);
}

export class DockerWorld implements AsyncDisposable {
  readonly engine: DockerEngine;
  readonly daemon: DaemonUnderTest;

  private constructor(engine: DockerEngine, daemon: DaemonUnderTest) {
    this.engine = engine;
    this.daemon = daemon;
  }

  static async start(options: EngineOptions & { readonly env?: Readonly<Record<string, string>> } = {}): Promise<DockerWorld> {
    await realBootFiles(testOperation(), nodeHost()); // made once for all tests
    const engine = await DockerEngine.start(options);
    if (engine === null) throw new Error('no Docker Engine can be started: ./dev installs docker.io, and root is needed');
    try {
      await symlink(engine.socketPath, wayTo(engine));
      const daemon = await DaemonUnderTest.start({
        entry: join(ROOT, 'src/daemon/main.ts'),
        env: {
          DOCKER_CONFIG: dockerConfigOf(engine),
          DOCKER_HOST: `unix://${wayTo(engine)}`,
          HUTCH_SANDBOX_BACKEND: 'docker',
          HUTCH_SANDBOX_NETWORK: 'none',
          HUTCH_SANDBOX_STOP_GRACE: '2s',
          ...options.env,
        },
        before: withImages,
      });
      return new DockerWorld(engine, daemon);
    } catch (error) {
      await engine[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** From now on the daemon goes to its Engine through a door of the test's. */
  async throughDoor(): Promise<EngineDoor> {
    const way = wayTo(this.engine);
    const lead = async (path: string): Promise<void> => {
      await symlink(path, `${way}.new`);
      await rename(`${way}.new`, way);
    };
    const door = await EngineDoor.open(this.engine.dir, this.engine.socketPath, () => lead(this.engine.socketPath));
    await lead(door.socketPath);
    return door;
  }

  /** Nothing is where the daemon looks for its Engine, which goes on, until that is disposed. */
  async withoutSocket(): Promise<AsyncDisposable> {
    const way = wayTo(this.engine);
    await rename(way, `${way}.hidden`);
    return { [Symbol.asyncDispose]: async () => await rename(`${way}.hidden`, way).catch(() => {}) };
  }

  /** The container of a sandbox, as the Engine lists it. */
  async container(id: string) {
    const found = (await this.engine.containers()).find(({ Labels }) => Labels['dev.hutch.sandbox'] === id);
    if (found === undefined) throw new Error(`the Engine has no container of ${id}`);
    return found;
  }

  async state(id: string): Promise<SandboxView['state']> {
    return (await this.daemon.call('sandbox.get', { ref: id })).state;
  }

  async gone(...ids: readonly string[]): Promise<void> {
    await Promise.all(ids.map((id) => this.daemon.call('sandbox.delete', { ref: id, force: true })));
  }

  /** What a test that failed has left must not fail the next one. */
  async clear(): Promise<void> {
    this.engine.thaw();
    const { sandboxes } = await this.daemon.call('sandbox.list', {});
    await Promise.allSettled(sandboxes.map(({ id }) => this.daemon.call('sandbox.delete', { ref: id, force: true })));
    await this.engine.removeContainers();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.daemon[Symbol.asyncDispose]();
    } finally {
      await this.engine[Symbol.asyncDispose]();
    }
  }
}
