// Ports of a sandbox, streams to them, and what it uses.
import type { Awaken } from './awaken.ts';
import type { Core } from './core.ts';
import type { Handlers } from './handlers.ts';

export function reachVerbs(
  core: Core,
  awaken: Awaken,
): Pick<Handlers, 'port.list' | 'port.watch' | 'port.publish' | 'port.unpublish' | 'port.connect' | 'sandbox.stats'> {
  const { sandboxes, runs, turns, publisher, stats } = core;
  return {
    'port.list': async ({ op, caller }, { ref }) => {
      const sandbox = await sandboxes.resolve(caller.projectId, ref);
      // Nobody listens in one that does not run; what is published stays reserved for it.
      const ports = sandbox.state === 'running' ? await (await runs.agent(op, sandbox)).ports.list(op) : [];
      return {
        ports: ports.map((port) => ({ ...port })),
        published: (await publisher.states(sandbox.id)).map((port) => ({ ...port })),
      };
    },

    'port.watch': async ({ op, caller }, { ref }) => {
      const agent = await runs.agent(op, await sandboxes.resolve(caller.projectId, ref));
      const { ports, changes } = await agent.ports.watch(op);
      return (async function* () {
        for (const port of ports) yield { kind: 'listening', ...port } as const;
        for await (const { e: kind, ...port } of changes) yield { kind, ...port };
      })();
    },

    'port.publish': async (call, { ref, ...port }) => {
      const { id } = await sandboxes.resolve(call.caller.projectId, ref);
      call.target(id);
      return await turns.take(call.op, id, async () => {
        const sandbox = await sandboxes.get(call.op, id);
        if (sandbox.state === 'deleted') throw call.op.error('failed_precondition', `sandbox ${sandbox.spec.name} is deleted`);
        const run = runs.get(id);
        return { ...(await publisher.add(call.op, id, run === null || run.isOver ? null : run, port)) };
      });
    },

    'port.unpublish': async (call, { ref, ...wanted }) => {
      const { id, spec } = await sandboxes.resolve(call.caller.projectId, ref);
      call.target(id);
      const named = Object.entries(wanted).filter(([, value]) => value !== undefined);
      if (named.length === 0) throw call.op.error('invalid_argument', 'give hostPort, guestPort or hostAddress');
      return await turns.take(call.op, id, async () => {
        const removed = await publisher.remove(call.op, id, (port) =>
          named.every(([key, value]) => port[key as keyof typeof port] === value),
        );
        if (removed.length > 0) return { removed: removed.map((port) => ({ ...port })) };
        const { hostPort, guestPort, hostAddress } = wanted;
        const where = [...(hostAddress === undefined ? [] : [hostAddress]), ...(hostPort === undefined ? [] : [hostPort])].join(':');
        const words = [
          ...(guestPort === undefined ? [] : [`its port ${guestPort}`]),
          ...(where === '' ? [] : [`at ${where} of this machine`]),
        ];
        const meant = (await publisher.of(id)).find((port) => guestPort !== undefined && port.hostPort === guestPort);
        throw call.op.error(
          'not_found',
          `sandbox ${spec.name} does not publish ${guestPort === undefined ? 'anything ' : ''}${words.join(' ')}`,
          {
            hint:
              meant === undefined
                ? `see: hutch ports ${spec.name}`
                : `${meant.hostPort} is the port of this machine that answers for its port ${meant.guestPort}: hutch ports rm ${spec.name} ${meant.guestPort}`,
          },
        );
      });
    },

    'port.connect': async (call, { ref, port, host, unix }) => {
      const { op } = call;
      if ((port === undefined) === (unix === undefined)) throw op.error('invalid_argument', 'give either port or unix');
      const sandbox = await awaken.resolve(call, ref);
      const agent = await runs.agent(op, sandbox);
      const target = unix !== undefined ? { unix } : { tcp: { port: port ?? 0, ...(host === undefined ? {} : { host }) } };
      const socket = await agent.connect(op, target);
      return {
        bytes: () => socket.bytes(op),
        write: (bytes) => socket.write(op, bytes),
        end: () => socket.end(),
        [Symbol.dispose]: () => socket[Symbol.dispose](),
      };
    },

    'sandbox.stats': async ({ op, caller }, { ref }) => {
      const sandbox = await sandboxes.resolve(caller.projectId, ref);
      return await stats.read(op, runs.of(op, sandbox), sandbox);
    },
  };
}
