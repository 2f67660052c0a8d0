// Agents that saved sandboxes run: what is taken up again goes on in the middle of its program, so it has to be that program to
// the byte, also when a newer Hutch brings another one. Each is kept once, under its digest, for as long as something saved names it (kept.ts).
import { createHash } from 'node:crypto';
import { basename, dirname, join } from 'node:path';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import type { GvisorConfig } from './config.ts';
import { AGENT_DIR, DIGEST_CHARS, linkDir } from './paths.ts';

const AGENT_BYTES_MAX = 64 * 1024 * 1024;

export class Agents {
  readonly #host: Host;
  readonly #dir: string;
  readonly #ours: string;

  constructor({ host, basesDir, agentPath }: Pick<GvisorConfig, 'host' | 'basesDir' | 'agentPath'>) {
    this.#host = host;
    this.#dir = basesDir;
    this.#ours = agentPath;
  }

  /** The digest of what runs in this sandbox, of which there is a copy when this returns. `pid`: of its runtime, which sees it. */
  async keep(op: Operation, plan: Pick<SandboxPlan, 'runDir'>, pid: number): Promise<string> {
    const host = this.#host;
    const runs = join('/proc', `${pid}`, 'root', linkDir(plan), basename(this.#ours));
    const bytes = await host.readFile(op, runs, AGENT_BYTES_MAX);
    const digest = createHash('sha256').update(bytes).digest('hex');
    const path = this.#pathOf(digest);
    if ((await host.stat(op, path)) !== null) return digest;
    await host.makeDir(op, dirname(path), 0o755);
    await host.writeFileAtomic(op, path, bytes, 0o755);
    return digest;
  }

  /** @throws HutchError `failed_precondition` where there is none of it. `undefined`: it was saved before this was asked. */
  async find(op: Operation, digest: string | undefined): Promise<string> {
    if (digest === undefined) return this.#ours;
    const path = this.#pathOf(digest);
    if ((await this.#host.stat(op, path)) !== null) return path;
    // It came from another machine: then ours will do, if it is the same.
    if ((await this.#host.sha256(op, this.#ours)) === digest) return this.#ours;
    throw op.error('failed_precondition', 'what was saved cannot go on here: the agent in it is of another release of Hutch', {
      hint: 'take it up with the release that saved it; without its memory it goes on anywhere: hutch snapshot create --disk-only',
    });
  }

  #pathOf(digest: string): string {
    return join(this.#dir, `${AGENT_DIR}${digest.slice(0, DIGEST_CHARS)}`, basename(this.#ours));
  }
}
