import { once } from 'node:events';
import { createServer } from 'node:net';
import { expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import type { Host } from './host.ts';
import { nodeHost } from './node-host.ts';
import { portOwner } from './port-owner.ts';

test('who has a port is found though descriptors of his close while they are looked at', async () => {
  const server = createServer();
  server.listen({ host: '127.0.0.1', port: 0 });
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  const host = nodeHost();
  const closed: string[] = [];
  const here: Pick<Host, 'readLink'> = {
    readLink: async (op, path) => {
      if (path.startsWith(`/proc/${process.pid}/`) && closed.length < 3) {
        closed.push(path);
        return await host.readLink(op, '/proc/self/fd/no-such');
      }
      return await host.readLink(op, path);
    },
  };
  try {
    expect(await portOwner(testOperation(), Object.assign(Object.create(host) as Host, here), port)).toMatch(
      new RegExp(`\\(pid ${process.pid}\\)$`),
    );
    expect(closed).toHaveLength(3);
  } finally {
    server.close();
  }
});
