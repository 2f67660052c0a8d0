// The logs of a sandbox, from the host, so that they are there whether it runs or not: what its main
// process wrote, what its kernel said while it booted, and what its VMM said.
import type { SandboxId } from '../domain/ids.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { Core } from './core.ts';
import { placesOf } from './deps.ts';
import type { Handlers } from './handlers.ts';
import { pause } from './pause.ts';
import { atMost, lastLogDir } from './take-down.ts';
import type { Parsed } from './verbs.ts';

/** A file that somebody else writes is looked at so often. */
const LOOK_MS = 250;
/** After the end of the sandbox: how long the last of its log may take. */
const LAST_LOG_MS = 2_000;

export function logVerbs(core: Core): Pick<Handlers, 'sandbox.logs'> {
  const { deps, sandboxes } = core;

  async function mainLog(op: Operation, sandbox: Sandbox, input: Parsed<'sandbox.logs'>) {
    const dir = sandbox.state === 'deleted' ? lastLogDir(core, sandbox.id) : placesOf(deps.places, sandbox.id).logDir;
    // Held over the whole stream: it must be the object that the copying writes to.
    const used = await core.logs.use(op, sandbox.id, dir);
    const { log } = used;
    try {
      const offset = Math.max(input.offset ?? (input.tailBytes === undefined ? 0 : await log.tail(op, input.tailBytes)), log.start);
      return {
        contentType: 'application/vnd.hutch.log-records',
        headers: { 'Hutch-Log-Offset': String(offset) },
        bytes: (async function* () {
          using _ = used;
          const ended = endOf(op, sandbox.id);
          for (let at = offset; ; ) {
            at = yield* log.read(op, at);
            if (input.follow !== true) return;
            if (ended.is) return;
            await log.more(op, at, ended.promise);
            if (ended.is) await atMost(op, core.runs.get(sandbox.id)?.mirrored ?? Promise.resolve(), LAST_LOG_MS);
          }
        })(),
      };
    } catch (error) {
      used[Symbol.dispose]();
      throw error;
    }
  }

  async function fileLog(op: Operation, sandbox: Sandbox, input: Parsed<'sandbox.logs'>) {
    const path = `${placesOf(deps.places, sandbox.id).logDir}/${input.source}.log`;
    const size = async (): Promise<number> => (await deps.host.stat(op, path))?.sizeBytes ?? 0;
    const offset = input.offset ?? (input.tailBytes === undefined ? 0 : Math.max(0, (await size()) - input.tailBytes));
    return {
      contentType: 'application/octet-stream',
      headers: { 'Hutch-Log-Offset': String(offset) },
      bytes: (async function* () {
        const ended = endOf(op, sandbox.id);
        for (let at = offset; ; ) {
          const isLast = input.follow !== true || ended.is;
          if ((await size()) < at) at = 0; // rotated
          if ((await size()) > at) {
            for await (const chunk of deps.host.readStream(op, path, at)) {
              yield chunk;
              at += chunk.byteLength;
            }
          }
          if (isLast) return;
          await pause(op, LOOK_MS);
        }
      })(),
    };
  }

  /** Settles when the sandbox does not run any more. */
  function endOf(op: Operation, id: SandboxId): { readonly promise: Promise<void>; readonly is: boolean } {
    const { promise, resolve } = Promise.withResolvers<void>();
    const state = { promise, is: false };
    const look = (sandbox: Sandbox): void => {
      if (sandbox.openComputeSinceMs !== null) return;
      state.is = true;
      resolve();
    };
    const listening = sandboxes.onChange(id, look);
    op.signal.addEventListener('abort', () => listening[Symbol.dispose](), { once: true });
    void promise.then(() => listening[Symbol.dispose]());
    sandboxes.get(op, id).then(look, () => resolve());
    return state;
  }

  return {
    'sandbox.logs': async ({ op, caller }, input) => {
      const sandbox = await sandboxes.resolve(caller.projectId, input.ref);
      return input.source === 'main' ? await mainLog(op, sandbox, input) : await fileLog(op, sandbox, input);
    },
  };
}
