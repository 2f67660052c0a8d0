// Debian's own registry on the loopback, which wants a login: over HTTP, as an Engine takes one of this machine, or with TLS.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { eventually } from './eventually.ts';
import { freePort } from './free-port.ts';

/** `htpasswd -nbB hutch open-sesame`. */
const HTPASSWD = 'hutch:$2b$05$dkEa1.fmOhhwIJyxvlaQ2.xmozxOY1XHKsSSPfWVrp0h3ZWT3gMq2';
export const LOGIN = { username: 'hutch', password: 'open-sesame' } as const;

export class Registry implements AsyncDisposable {
  /** `127.0.0.1:PORT`. */
  readonly name: string;
  readonly #dir: string;
  readonly #child: ChildProcess;

  private constructor(name: string, dir: string, child: ChildProcess) {
    this.name = name;
    this.#dir = dir;
    this.#child = child;
  }

  /** With `tls` its files, made by whoever asks. */
  static async start(tls?: { readonly certificate: string; readonly key: string }): Promise<Registry> {
    const dir = await mkdtemp(join(tmpdir(), 'hutch-registry-'));
    const name = `127.0.0.1:${await freePort()}`;
    await writeFile(join(dir, 'htpasswd'), `${HTPASSWD}\n`);
    const config = {
      version: 0.1,
      log: { level: 'error' },
      storage: { filesystem: { rootdirectory: join(dir, 'store') } },
      http: { addr: name, ...(tls === undefined ? {} : { tls }) },
      auth: { htpasswd: { realm: 'hutch', path: join(dir, 'htpasswd') } },
    };
    await writeFile(join(dir, 'config.json'), JSON.stringify(config)); // what is JSON is YAML
    const child = spawn('docker-registry', ['serve', join(dir, 'config.json')], { stdio: 'ignore' });
    const failed = once(child, 'error').then(([error]) => Promise.reject(error));
    const url = `${tls === undefined ? 'http' : 'https'}://${name}/v2/`;
    const status = () => spawnSync('curl', ['-ks', '-o', '/dev/null', '-w', '%{http_code}', url], { encoding: 'utf8' }).stdout;
    const answers = async (): Promise<boolean> => status() === '401';
    await Promise.race([eventually('the registry to answer', answers, 30_000), failed]);
    failed.catch(() => {});
    return new Registry(name, dir, child);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const over = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await over;
    await rm(this.#dir, { recursive: true, force: true });
  }
}
