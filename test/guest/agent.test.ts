import { expect, test } from 'vitest';
import { connectAgent } from '../../src/guest/agent.ts';
import { EXIT, fakeAgent, HELLO } from './fake-agent.ts';
import { testOperation, text } from './support.ts';

test('an agent that answers the preamble says hello', async () => {
  const { agent, duplex } = fakeAgent({ hello: (stream) => stream.answer(HELLO) });
  const op = testOperation();
  using client = await connectAgent(op, duplex);
  expect(await client.hello(op)).toMatchObject({ agentVersion: '0.1.0', pid: 1, generation: null });
  expect(agent.violations).toEqual([]);
});

test('a process gives its output, its ends and then its exit', async () => {
  const { agent, duplex } = fakeAgent({
    'process.start': (stream) => {
      stream.reply({ pid: 7, startedAtMs: 1, existing: false });
      stream.data(1, Buffer.from('out'));
      stream.data(2, Buffer.from('err'));
      stream.end(1);
      stream.end(2);
      stream.close({ ...EXIT, code: 3 });
    },
  });
  const op = testOperation();
  using client = await connectAgent(op, duplex);
  const { process } = await client.process.start(op, { id: 'p', argv: ['true'], stdin: 'null', whenUnread: 'block' });
  const seen: string[] = [];
  for await (const item of process.items(op)) {
    seen.push(
      item.type === 'output'
        ? `${item.channel}@${item.offset} ${text(item.bytes)}`
        : item.type === 'exit'
          ? `exit ${item.exit.code}`
          : item.type,
    );
  }
  expect(seen).toEqual(['stdout@0 out', 'stderr@0 err', 'end', 'end', 'exit 3']);
  expect(agent.violations).toEqual([]);
});
