// What a running sandbox is given after its start: a main process, so that files can be in place before it begins, and the
// record of a git repository that a client has copied in.
import type { Sandbox, SandboxEvent } from '../domain/sandbox.ts';
import { startMain } from './bring-up.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import type { Handlers } from './handlers.ts';
import type { SandboxView } from './present.ts';
import { followMain } from './start-up.ts';
import type { Supervisor } from './supervisor.ts';

export function beginVerbs(core: Core, supervisor: Supervisor): Pick<Handlers, 'main.begin' | 'workspace.put'> {
  const { deps, sandboxes, turns, presenter } = core;

  async function given(
    call: Call,
    ref: string,
    event: (sandbox: Sandbox) => SandboxEvent,
    then = async (after: Sandbox) => after,
  ): Promise<SandboxView> {
    const { id } = await sandboxes.resolve(call.caller.projectId, ref);
    call.target(id);
    const after = await turns.take(call.op, id, async () => {
      const [sandbox] = await call.commit([{ change: 'applyEvent', sandboxId: id, event: event(await sandboxes.get(call.op, id)) }]);
      sandboxes.changed(sandbox);
      return await then(sandbox);
    });
    return await presenter.sandbox(after, call.op.id);
  }

  return {
    'main.begin': async (call, { ref, main: { argv, tty, stdin, terminal, attach } }) =>
      await given(
        call,
        ref,
        () => ({ type: 'begun', atMs: deps.host.nowMs(), opId: call.op.id, main: { argv, tty, stdin } }),
        async (sandbox) => {
          const run = core.runs.of(call.op, sandbox);
          try {
            const begun = await startMain(run, { sandbox, terminal });
            supervisor.watchMain(run, sandbox);
            return await followMain(supervisor, call, run, sandbox, begun, attach);
          } catch (cause) {
            // It is on record: whether the guest has heard of it is found out as after a daemon that died here.
            supervisor.adoptMain(run, sandbox);
            throw cause;
          }
        },
      ),
    'workspace.put': async (call, { ref, workspace }) =>
      await given(call, ref, () => {
        const atMs = deps.host.nowMs();
        return { type: 'prepared', atMs, opId: call.op.id, workspace: { ...workspace, preparedAtMs: atMs } };
      }),
  };
}
