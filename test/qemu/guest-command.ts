// One command in a guest, to its end.
import { randomBytes } from 'node:crypto';
import type { Agent } from '../../src/guest/agent.ts';
import type { Exit } from '../../src/guest/messages.ts';
import type { Operation } from '../../src/host/operation.ts';

export type Output = { readonly stdout: string; readonly stderr: string; readonly exit: Exit };

export async function outputOf(op: Operation, agent: Agent, argv: readonly string[], user?: string): Promise<Output> {
  const id = `t${randomBytes(6).toString('hex')}`;
  const { process } = await agent.process.start(op, {
    id,
    argv,
    stdin: 'null',
    whenUnread: 'block',
    ...(user === undefined ? {} : { user }),
  });
  const parts: Record<'stdout' | 'stderr', Uint8Array[]> = { stdout: [], stderr: [] };
  for await (const item of process.items(op)) {
    if (item.type === 'output') parts[item.channel].push(item.bytes);
    if (item.type === 'exit') {
      return { stdout: Buffer.concat(parts.stdout).toString(), stderr: Buffer.concat(parts.stderr).toString(), exit: item.exit };
    }
  }
  throw new Error('the process ended without an exit');
}
