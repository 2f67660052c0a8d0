// Each state of a sandbox × each verb: what is answered, or with which code it is refused. One table;
// a new verb or state does not pass until it has its place here.
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ErrorCode } from '../../src/domain/errors.ts';
import { type VerbName, verbs } from '../../src/services/verbs.ts';
import { ApiError, DaemonUnderTest, type SandboxView } from '../support/daemon-under-test.ts';

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

const STATES = ['created', 'running', 'paused', 'stopped', 'deleted'] as const;
type State = (typeof STATES)[number];
/** The state afterwards, `ok` where it stays, or the code of the refusal. */
type Outcome = 'ok' | SandboxView['state'] | ErrorCode;
type Row = Readonly<Record<State, Outcome>>;

const NEEDS_RUNNING: Row = {
  created: 'failed_precondition',
  running: 'ok',
  paused: 'failed_precondition',
  stopped: 'failed_precondition',
  deleted: 'failed_precondition',
};
const ALWAYS: Row = { created: 'ok', running: 'ok', paused: 'ok', stopped: 'ok', deleted: 'ok' };

const TABLE: Readonly<Record<string, Row>> = {
  'sandbox.get': ALWAYS,
  'sandbox.start': { created: 'running', running: 'ok', paused: 'failed_precondition', stopped: 'running', deleted: 'failed_precondition' },
  'sandbox.stop': { created: 'ok', running: 'stopped', paused: 'stopped', stopped: 'ok', deleted: 'ok' },
  'sandbox.restart': { created: 'running', running: 'running', paused: 'running', stopped: 'running', deleted: 'failed_precondition' },
  'sandbox.pause': {
    created: 'failed_precondition',
    running: 'paused',
    paused: 'ok',
    stopped: 'failed_precondition',
    deleted: 'failed_precondition',
  },
  'sandbox.resume': {
    created: 'failed_precondition',
    running: 'ok',
    paused: 'running',
    stopped: 'failed_precondition',
    deleted: 'failed_precondition',
  },
  'sandbox.rename': { created: 'ok', running: 'ok', paused: 'ok', stopped: 'ok', deleted: 'failed_precondition' },
  'sandbox.delete': {
    created: 'deleted',
    running: 'failed_precondition',
    paused: 'failed_precondition',
    stopped: 'deleted',
    deleted: 'ok',
  },
  'sandbox.wait': { created: 'ok', running: 'ok', paused: 'ok', stopped: 'ok', deleted: 'ok' },
  'sandbox.stats': NEEDS_RUNNING,
  'sandbox.logs': ALWAYS,
  'exec.start': NEEDS_RUNNING,
  'exec.attach': NEEDS_RUNNING,
  'exec.list': NEEDS_RUNNING,
  'exec.signal': NEEDS_RUNNING,
  'port.list': NEEDS_RUNNING,
  'port.connect': NEEDS_RUNNING,
  'file.read': NEEDS_RUNNING,
  'file.write': NEEDS_RUNNING,
  'file.stat': NEEDS_RUNNING,
  'file.list': NEEDS_RUNNING,
  'file.mkdir': NEEDS_RUNNING,
  'file.rename': NEEDS_RUNNING,
  'file.remove': NEEDS_RUNNING,
  'file.chmod': NEEDS_RUNNING,
  'file.chown': NEEDS_RUNNING,
  'file.symlink': NEEDS_RUNNING,
  'file.truncate': NEEDS_RUNNING,
  'file.watch': NEEDS_RUNNING,
  'archive.get': NEEDS_RUNNING,
  'archive.put': NEEDS_RUNNING,
  'why.get': ALWAYS,
};

/** Verbs that are not about one sandbox, or about what has no state yet. */
const ELSEWHERE: readonly VerbName[] = [
  'sandbox.create',
  'sandbox.list',
  'event.list',
  'operation.list',
  'operation.get',
  'operation.cancel',
  'ledger.list',
  'ledger.verify',
  'key.create',
  'key.list',
  'key.revoke',
  'config.get',
  'doctor.check',
  'doctor.leaks',
  'daemon.version',
  'daemon.stop',
];

test('every verb has its place in the table', () => {
  expect([...Object.keys(TABLE), ...ELSEWHERE].sort()).toEqual(Object.keys(verbs).sort());
});

async function sandboxIn(state: State): Promise<string> {
  const { id } = await daemon.call('sandbox.create', state === 'created' || state === 'deleted' ? { start: false } : {});
  if (state === 'paused') await daemon.call('sandbox.pause', { ref: id });
  if (state === 'stopped') await daemon.call('sandbox.stop', { ref: id, force: true });
  if (state === 'deleted') await daemon.call('sandbox.delete', { ref: id });
  return id;
}

let names = 0;

async function ask(verb: string, ref: string): Promise<void> {
  const path = `/v1/sandboxes/${ref}`;
  const query = (text: string): string => `${path}/${text}`;
  const post = async (what: string, body: object): Promise<void> => {
    const answer = await daemon.send('POST', query(what), { body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' } });
    if (answer.status !== 200) throw new ApiError(answer.status, JSON.parse(answer.body.toString()) as ApiError['body'], answer.headers);
  };
  const raw = async (method: string, where: string, body?: string): Promise<void> => {
    const answer = await daemon.send(method, where, body === undefined ? {} : { body });
    if (answer.status !== 200) throw new ApiError(answer.status, JSON.parse(answer.body.toString()) as ApiError['body'], answer.headers);
  };
  switch (verb) {
    case 'sandbox.rename':
      names += 1;
      return void (await daemon.call('sandbox.rename', { ref, name: `renamed-${names}` }));
    case 'sandbox.wait': {
      const gone = new AbortController();
      const waiting = daemon.call('sandbox.wait', { ref }, { signal: gone.signal });
      const state = (await daemon.call('sandbox.get', { ref })).state;
      if (state === 'running' || state === 'paused') gone.abort();
      return await waiting.then(
        () => {},
        (error: unknown) => {
          if (!gone.signal.aborted) throw error;
        },
      );
    }
    case 'sandbox.logs':
      return raw('GET', query('logs'));
    case 'exec.start':
      return void (await (await daemon.exec(ref, { argv: ['true'] })).exit());
    case 'exec.attach':
      await (await daemon.exec(ref, { argv: ['true'] }, { execId: 'one' })).exit();
      return void (await (await daemon.attach(ref, 'one')).exit());
    case 'exec.signal': {
      const client = await daemon.exec(ref, { argv: ['sleep', '100'] }, { execId: 'two' });
      await Promise.race([client.saw('started'), client.exit()]);
      return void (await daemon.call('exec.signal', { ref, execId: 'two', signal: 'KILL' }));
    }
    case 'port.connect': {
      const client = await daemon.socket(query('connect?port=9'));
      await client.closed;
      const error = client.message('error') as { error: ApiError['body'] } | undefined;
      // Nobody listens there; that the guest says so is all that matters here.
      if (error !== undefined && error.error.code === 'failed_precondition') throw new ApiError(412, error.error, {});
      return;
    }
    case 'file.read':
      return raw('GET', query('files?path=/etc/passwd'));
    case 'file.write':
      return raw('PUT', query('files?path=/tmp/written'), 'content');
    case 'file.list':
      return raw('GET', query('files/list?path=/etc'));
    case 'file.watch': {
      const gone = new AbortController();
      const response = await daemon.open('GET', query('files/watch?path=/tmp'), { signal: gone.signal });
      if (response.statusCode === 200) return gone.abort();
      const chunks: Buffer[] = [];
      for await (const chunk of response) chunks.push(chunk as Buffer);
      throw new ApiError(response.statusCode ?? 0, JSON.parse(Buffer.concat(chunks).toString()) as ApiError['body'], response.headers);
    }
    case 'archive.get':
      return raw('GET', query('archive?path=/etc'));
    case 'archive.put':
      return raw('PUT', query('archive?path=/tmp'), '\0'.repeat(1024));
    case 'file.stat':
      return void (await daemon.call('file.stat', { ref, path: '/etc/passwd' }));
    case 'file.mkdir':
      return post('files/mkdir', { path: '/tmp/dir' });
    case 'file.rename':
      return post('files/rename', { from: '/etc/group', to: '/etc/group2' });
    case 'file.remove':
      return raw('DELETE', query('files?path=/etc/passwd'));
    case 'file.chmod':
      return post('files/chmod', { path: '/etc/passwd', mode: 0o600 });
    case 'file.chown':
      return post('files/chown', { path: '/etc/passwd', owner: '1000' });
    case 'file.symlink':
      return post('files/symlink', { path: '/tmp/link', target: '/etc' });
    case 'file.truncate':
      return post('files/truncate', { path: '/etc/passwd', size: 1 });
    default:
      return void (await daemon.call(verb as 'sandbox.get', { ref }));
  }
}

for (const [verb, row] of Object.entries(TABLE)) {
  test(`${verb}: ${STATES.map((state) => `${state} → ${row[state]}`).join(', ')}`, async () => {
    for (const state of STATES) {
      const ref = await sandboxIn(state);
      const wanted = row[state];
      const outcome = await ask(verb, ref).then(
        () => 'done',
        (error: unknown) => (error instanceof ApiError ? error.code : Promise.reject(error as Error)),
      );
      const now = (await daemon.call('sandbox.get', { ref })).state;
      if (wanted === 'ok') expect([outcome, now], `${verb} of a ${state} one`).toEqual(['done', state]);
      else if ((STATES as readonly string[]).includes(wanted))
        expect([outcome, now], `${verb} of a ${state} one`).toEqual(['done', wanted]);
      else expect([outcome, now], `${verb} of a ${state} one`).toEqual([wanted, state]);
      await daemon.call('sandbox.delete', { ref, force: true });
    }
  });
}
