// A published port against a bare relay to the same server in the same sandbox: that one connects by the way that the sandbox has
// without Hutch. A container has an address; a machine on passt is reached through a port that passt itself forwards, which
// Hutch never lets it do: here it is told to, in a mount namespace in which another program stands at passt's place.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Sandbox } from '../../src/sdk/sandbox.ts';
import type { Bench, Measurement } from '../context.ts';
import { judge, type Row, timed } from '../harness.ts';
import { execOk, interrupted, mustRun, type Place, processes } from '../place.ts';
import { type Backend, freePort, isAnswered, makePlace, owned } from './reach.ts';

const CONNECTIONS = 16;
const REQUESTS: Readonly<Record<Backend, number>> = { docker: 10_000, gvisor: 4_000, qemu: 2_000 };
const REQUESTS_QUICK = 64;
const GUEST_PORT = 8000;
const READY_MS = 30_000;
const LOAD_MS = 300_000;
const ASK = Buffer.from('GET / HTTP/1.1\r\nHost: bench\r\n\r\n');
const BODY_BYTES = 128;
const HEAD = `HTTP/1.1 200 OK\r\nContent-Length: ${BODY_BYTES}\r\n\r\n`;
const ANSWER_BYTES = HEAD.length + BODY_BYTES;

/** Answers each request on its connection with as many bytes. */
const SERVER = `
import asyncio
answer = ${JSON.stringify(HEAD)}.encode() + b"x" * ${BODY_BYTES}
class P(asyncio.Protocol):
    def connection_made(self, t): self.t = t
    def data_received(self, d): self.t.write(answer * d.count(b"\\r\\n\\r\\n"))
async def main():
    s = await asyncio.get_running_loop().create_server(P, "0.0.0.0", ${GUEST_PORT})
    await s.serve_forever()
asyncio.run(main())`;

/** One packet to the gateway. */
const SPEAK = 'import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.0.1", 9))';

type Load = { readonly perSecond: number; readonly p99Ms: number };
type Address = { readonly host: string; readonly port: number };

/** One request after the other on each of some connections. */
async function load(port: number, requests: number): Promise<Load> {
  const latencies: number[] = [];
  const each = Math.ceil(requests / CONNECTIONS);
  const tookMs = await timed(async () => {
    await Promise.all(
      Array.from({ length: CONNECTIONS }, async () => {
        const socket = connect({ host: '127.0.0.1', port, noDelay: true });
        const closed = new AbortController();
        socket.once('close', () => closed.abort(new Error(`port ${port} closed a connection before it had answered`)));
        const signal = AbortSignal.any([closed.signal, interrupted, AbortSignal.timeout(LOAD_MS)]);
        await once(socket, 'connect', { signal });
        for (let nth = 0; nth < each; nth += 1) latencies.push(await timed(() => answered(socket, signal)));
        socket.destroy();
      }),
    );
  });
  const sorted = latencies.toSorted((a, b) => a - b);
  return { perSecond: (latencies.length / tookMs) * 1_000, p99Ms: sorted[Math.floor(sorted.length * 0.99)] ?? 0 };
}

async function answered(socket: Socket, signal: AbortSignal): Promise<void> {
  socket.write(ASK);
  for (let left = ANSWER_BYTES; left > 0; ) {
    const [chunk] = (await once(socket, 'data', { signal })) as [Buffer];
    left -= chunk.byteLength;
  }
}

/** The port of a relay to there, in a process of its own. */
async function bareRelay(scope: AsyncDisposableStack, { host, port }: Address): Promise<number> {
  const script = join(import.meta.dirname, '../bare/relay.ts');
  const relay = spawn(process.execPath, [script, host, String(port)], { stdio: ['ignore', 'pipe', 'inherit'] });
  owned(scope, relay);
  const [line] = (await once(relay.stdout, 'data')) as [Buffer];
  return Number(line.toString());
}

/** A daemon whose sandboxes' passt forwards that port of this machine to the server. */
async function startForwarding(place: Place, port: number): Promise<void> {
  const passt = (await mustRun(['sh', '-c', 'PATH=$PATH:/usr/sbin command -v passt'])).trim();
  // Under its own name, by which it knows what it is to be.
  const own = join(place.home, 'passt-own');
  await mkdir(own, { mode: 0o755 });
  await mustRun(['sh', '-c', `cp ${passt}* ${own}/`]);
  const instead = join(place.home, 'passt-forwarding');
  const swap = `[ "$before" = --tcp-ports ] && arg=127.0.0.1/${port}:${GUEST_PORT}`;
  await writeFile(instead, `#!/bin/sh\nfor arg; do shift; ${swap}; before=$arg; set -- "$@" "$arg"; done\nexec ${own}/passt "$@"\n`);
  await chmod(instead, 0o755);
  const script = `mount --bind ${instead} ${passt} && exec "$@"`;
  await place.startDaemon({ program: 'unshare', args: ['--mount', 'sh', '-c', script, 'sh'] });
}

/** What passt answers to who comes to that port is no packet of a sandbox to this host. */
async function admitAnswers(port: number): Promise<void> {
  const passt = processes().find(
    ({ cmdline }) => cmdline.includes('passt-own/passt ') && cmdline.includes(`127.0.0.1/${port}:${GUEST_PORT}`),
  );
  const uid = Number(/^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${passt?.pid}/status`, 'utf8'))?.[1]);
  const tables = [...(await mustRun(['nft', 'list', 'tables'])).matchAll(/hutch_uids_(\d+)$/gm)].map(([, first]) => Number(first));
  const table = `hutch_uids_${Math.max(...tables.filter((first) => first <= uid))}`;
  await mustRun(['nft', 'insert', 'rule', 'inet', table, 'output', 'oifname', 'lo', 'tcp', 'sport', String(port), 'accept']);
}

async function addressOf(backend: Backend, sandbox: Sandbox, forwarded: number): Promise<Address> {
  if (backend === 'docker') return { host: (await execOk(sandbox, ['hostname', '-I'])).trim().split(' ')[0] ?? '', port: GUEST_PORT };
  await admitAnswers(forwarded);
  // passt sends nothing into a machine whose card it has not heard of yet.
  await execOk(sandbox, ['python3', '-c', SPEAK]);
  return { host: '127.0.0.1', port: forwarded };
}

async function startPlace(scope: AsyncDisposableStack, backend: Backend, forwarded: number): Promise<Place> {
  if (process.getuid?.() !== 0) throw new Error('reaching a server in a sandbox without Hutch takes root');
  const place = await makePlace(scope, backend);
  await (backend === 'docker' ? place.startDaemon() : startForwarding(place, forwarded));
  return place;
}

const NOTES: Readonly<Record<Backend, string>> = {
  docker:
    'The bare relay connects to the container’s address. Ours goes through the daemon and the agent: one process more that reads and writes each byte.',
  gvisor:
    'The bare relay connects to a port that passt forwards into the same sandbox: passt and the runtime’s own TCP carry it from there. Ours comes over the agent’s socket. Bound by the runtime, in which each call stops a traced process: of each request its kernel takes four fifths of the processor time, for the server and for the agent. What the agent asks that finds nothing is gone (docs/decisions/0020), and the sandbox may have of its processors in one tenth of a second what it left in an earlier one: it stood still for 20 ms up to twice a second, and with it all 16 connections, which was the p99. With both, in turn with the release before: 1.07 where it was 1.21 of the relay’s time for each request, 1.05 where it was 1.61 of its p99.',
  qemu: 'The bare relay connects to a port that passt forwards into the same machine, over its network card. Ours comes over the agent’s port: each request is read and written by one more program under emulation.',
};

async function publishedPort(bench: Bench, backend: Backend): Promise<readonly Row[]> {
  await using scope = bench.scope();
  const forwarded = await freePort();
  const place = await startPlace(scope, backend, forwarded);
  const sandbox = await place.hutch.create({ network: 'allow', main: { argv: ['python3', '-c', SERVER] } });
  const { hostPort } = await sandbox.publish(GUEST_PORT);
  const until = performance.now() + READY_MS;
  while (!(await sandbox.ports()).some(({ port }) => port === GUEST_PORT)) {
    if (performance.now() > until) throw new Error('the server in the sandbox does not listen');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const relay = await bareRelay(scope, await addressOf(backend, sandbox, forwarded));
  await isAnswered(relay);
  const requests = bench.pick({ quick: REQUESTS_QUICK, usual: REQUESTS[backend], long: REQUESTS[backend] });
  const taken = { relay: [] as Load[], port: [] as Load[] };
  for (let i = 0; i <= bench.runs(5, 1); i += 1) {
    const [bare, ours] = [await load(relay, requests), await load(hostPort, requests)];
    if (i === 0) continue; // warm
    taken.relay.push(bare);
    taken.port.push(ours);
  }
  const what = `published port, ${backend}, ${CONNECTIONS} connections`;
  const row = {
    unit: 'ms' as const,
    baselineName: 'a bare Node.js TCP relay to the same server in the same sandbox',
    note: NOTES[backend],
  };
  const perRequest = ({ perSecond }: Load): number => 1_000 / perSecond;
  return [
    judge(
      { ...row, what: `${what}: time for each request`, target: '≤ 1.25× (≥ 0.8× the requests/s)', meets: (ratio) => ratio <= 1.25 },
      taken.relay.map(perRequest),
      taken.port.map(perRequest),
    ),
    judge(
      { ...row, what: `${what}: p99 of a request`, target: '≤ 1.5×', meets: (ratio) => ratio <= 1.5 },
      taken.relay.map(({ p99Ms }) => p99Ms),
      taken.port.map(({ p99Ms }) => p99Ms),
    ),
  ];
}

export const PUBLISHED: readonly Measurement[] = (['docker', 'gvisor', 'qemu'] as const).map((backend) => ({
  name: 'workspace',
  about: `a published port of ${backend}, against a bare relay to the same server`,
  rows: (bench) => publishedPort(bench, backend),
}));
