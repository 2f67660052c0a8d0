// Each state of a sandbox × each verb: what is answered, or with which code it is refused. A new verb or
// state does not pass until it has its place here.
import type { ErrorCode } from '../../src/domain/errors.ts';
import { ACCEPTS, type SandboxState } from '../../src/domain/sandbox.ts';
import type { VerbName } from '../../src/services/verbs.ts';
import { ApiError } from '../support/daemon-under-test.ts';
import type { Subject } from './subject.ts';

export type State = SandboxState;
export const STATES = Object.keys(ACCEPTS) as State[];

/** The state afterwards, `ok` where it stays, or the code of the refusal. */
export type Outcome = 'ok' | State | ErrorCode;
type Row = Readonly<Record<State, Outcome>>;

const refused = 'failed_precondition';
const ALWAYS: Row = { created: 'ok', running: 'ok', paused: 'ok', suspended: 'ok', stopped: 'ok', error: 'ok', deleted: 'ok' };
const NOT_THERE: Row = {
  created: 'not_found',
  running: 'not_found',
  paused: 'not_found',
  suspended: 'not_found',
  stopped: 'not_found',
  error: 'not_found',
  deleted: 'not_found',
};
const NEEDS_RUNNING: Row = {
  created: refused,
  running: 'ok',
  paused: refused,
  suspended: refused,
  stopped: refused,
  error: refused,
  deleted: refused,
};

/** The column `error` is of a sandbox whose process is alive: what may be is billed, and is ended before it is started again. */
export const TABLE: Readonly<Partial<Record<VerbName, Row>>> = {
  'sandbox.get': ALWAYS,
  'sandbox.start': {
    created: 'running',
    running: 'ok',
    paused: refused,
    suspended: 'running',
    stopped: 'running',
    error: refused,
    deleted: refused,
  },
  'sandbox.stop': {
    created: 'ok',
    running: 'stopped',
    paused: 'stopped',
    suspended: 'stopped',
    stopped: 'ok',
    error: 'stopped',
    deleted: 'ok',
  },
  'sandbox.restart': {
    created: 'running',
    running: 'running',
    paused: 'running',
    suspended: 'running',
    stopped: 'running',
    error: 'running',
    deleted: refused,
  },
  'sandbox.pause': {
    created: refused,
    running: 'paused',
    paused: 'ok',
    suspended: refused,
    stopped: refused,
    error: refused,
    deleted: refused,
  },
  'sandbox.resume': {
    created: refused,
    running: 'ok',
    paused: 'running',
    suspended: 'running',
    stopped: refused,
    error: refused,
    deleted: refused,
  },
  'sandbox.suspend': {
    created: refused,
    running: 'suspended',
    paused: 'suspended',
    suspended: 'ok',
    stopped: refused,
    error: refused,
    deleted: refused,
  },
  'sandbox.fork': { ...NEEDS_RUNNING, paused: 'ok', suspended: 'ok' },
  // Of a snapshot that is not there: what comes of others is tested where there are any.
  'sandbox.restore': NOT_THERE,
  // Nothing was kept.
  'sandbox.undo': {
    created: refused,
    running: refused,
    paused: refused,
    suspended: refused,
    stopped: refused,
    error: refused,
    deleted: refused,
  },
  'sandbox.rename': { created: 'ok', running: 'ok', paused: 'ok', suspended: 'ok', stopped: 'ok', error: 'ok', deleted: refused },
  'sandbox.set': { ...ALWAYS, deleted: refused },
  'sandbox.delete': {
    created: 'deleted',
    running: refused,
    paused: refused,
    suspended: 'failed_precondition',
    stopped: 'deleted',
    error: refused,
    deleted: 'ok',
  },
  'sandbox.wait': ALWAYS,
  'sandbox.stats': NEEDS_RUNNING,
  'sandbox.logs': ALWAYS,
  'exec.start': NEEDS_RUNNING,
  'exec.attach': NEEDS_RUNNING,
  'exec.list': NEEDS_RUNNING,
  'exec.signal': NEEDS_RUNNING,
  // What is published, in any case.
  'port.list': ALWAYS,
  'port.watch': NEEDS_RUNNING,
  // Reserved whatever it does; answered at while it runs.
  'port.publish': { ...ALWAYS, deleted: refused },
  'port.unpublish': { ...ALWAYS, deleted: 'not_found' },
  'port.share': { ...ALWAYS, deleted: refused },
  'port.unshare': ALWAYS,
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

/** Sections whose verbs are not about one sandbox, and the verbs of `sandbox` that have no state to be about. */
export const ELSEWHERE = [
  'main',
  'workspace',
  'event',
  'operation',
  'ledger',
  'key',
  'config',
  'doctor',
  'daemon',
  'backends',
  'image',
  'volume',
  'ssh',
  'build',
  'snapshot',
  'template',
  'system',
  'kernel',
  'quota',
  'asset',
];
export const STATELESS: readonly VerbName[] = ['sandbox.create', 'sandbox.list'];

/** A sandbox in that state. */
export async function sandboxIn(subject: Subject, state: State): Promise<string> {
  const { daemon } = subject;
  const { id } = await subject.make({ start: state !== 'created' && state !== 'deleted' });
  if (state === 'paused') await daemon.call('sandbox.pause', { ref: id });
  if (state === 'suspended') await daemon.call('sandbox.suspend', { ref: id });
  if (state === 'stopped') await daemon.call('sandbox.stop', { ref: id, force: true });
  if (state === 'deleted') await daemon.call('sandbox.delete', { ref: id });
  if (state === 'error') await subject.doubt(id);
  return id;
}

/** Asks a verb of a sandbox, in a way that can be asked again. @throws ApiError */
export async function ask({ daemon }: Subject, verb: VerbName, ref: string, nth: number): Promise<void> {
  const at = `/tmp/ask-${nth}`;
  const path = `/v1/sandboxes/${ref}`;
  const raw = async (method: string, where: string, body?: string | object): Promise<void> => {
    const answer = await daemon.send(method, `${path}/${where}`, {
      ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
      ...(typeof body === 'object' ? { headers: { 'Content-Type': 'application/json' } } : {}),
    });
    if (answer.status !== 200) throw new ApiError(answer.status, JSON.parse(answer.body.toString()) as ApiError['body'], answer.headers);
  };
  switch (verb) {
    case 'sandbox.rename':
      return void (await daemon.call(verb, { ref, name: `renamed-${nth}` }));
    case 'sandbox.set':
      return void (await daemon.call(verb, { ref, labels: { nth: String(nth) } }));
    case 'sandbox.wait': {
      const { state } = await daemon.call('sandbox.get', { ref });
      const gone = new AbortController();
      const waiting = daemon.call(verb, { ref }, { signal: gone.signal });
      if (state === 'running' || state === 'paused' || state === 'suspended') gone.abort();
      return await waiting.then(
        () => {},
        (error: unknown) => {
          if (!gone.signal.aborted) throw error;
        },
      );
    }
    case 'sandbox.fork': {
      const { children } = await daemon.call(verb, { ref, namePrefix: `fork-${nth}` });
      for (const { sandbox } of children) await daemon.call('sandbox.delete', { ref: sandbox.id, force: true });
      return;
    }
    case 'sandbox.restore':
      return void (await daemon.call(verb, { ref, snapshot: 'none' }));
    case 'sandbox.logs':
      return await raw('GET', 'logs');
    case 'exec.start':
      return void (await (await daemon.exec(ref, { argv: ['true'] })).exit());
    case 'exec.attach':
      await (await daemon.exec(ref, { argv: ['true'] }, { execId: `one-${nth}` })).exit();
      return void (await (await daemon.attach(ref, `one-${nth}`)).exit());
    case 'exec.signal': {
      const client = await daemon.exec(ref, { argv: ['sleep', '100'] }, { execId: `two-${nth}` });
      await Promise.race([client.saw('started'), client.exit()]);
      await daemon.call(verb, { ref, execId: `two-${nth}`, signal: 'KILL' });
      return void (await client.exit());
    }
    case 'port.publish':
      return void (await daemon.call(verb, { ref, guestPort: 9 }));
    case 'port.unpublish':
      return void (await daemon.call(verb, { ref, guestPort: 9 }));
    case 'port.share':
    case 'port.unshare':
      return void (await daemon.call(verb, { ref, port: 9 }));
    case 'port.connect': {
      const client = await daemon.socket(`${path}/connect?port=9`);
      await client.closed;
      const error = client.message('error') as { error: ApiError['body'] } | undefined;
      // Nobody listens there; that the guest says so is all that matters here.
      if (error !== undefined && error.error.code === refused) throw new ApiError(412, error.error, {});
      return;
    }
    case 'file.read':
      return await raw('GET', 'files?path=/etc/passwd');
    case 'file.write':
      return await raw('PUT', `files?path=${at}`, 'content');
    case 'file.list':
      return await raw('GET', 'files/list?path=/etc');
    case 'port.watch':
    case 'file.watch': {
      const gone = new AbortController();
      const what = verb === 'port.watch' ? 'ports/watch' : 'files/watch?path=/tmp';
      const response = await daemon.open('GET', `${path}/${what}`, { signal: gone.signal });
      if (response.statusCode === 200) return gone.abort();
      const chunks: Buffer[] = [];
      for await (const chunk of response) chunks.push(chunk as Buffer);
      throw new ApiError(response.statusCode ?? 0, JSON.parse(Buffer.concat(chunks).toString()) as ApiError['body'], response.headers);
    }
    case 'archive.get':
      return await raw('GET', 'archive?path=/etc/passwd');
    case 'archive.put':
      return await raw('PUT', 'archive?path=/tmp', '\0'.repeat(1024));
    case 'file.stat':
      return void (await daemon.call(verb, { ref, path: '/etc/passwd' }));
    case 'file.mkdir':
      return await raw('POST', 'files/mkdir', { path: at });
    case 'file.symlink':
      return await raw('POST', 'files/symlink', { path: at, target: '/etc' });
    case 'file.rename':
      await raw('PUT', `files?path=${at}`, 'content');
      return await raw('POST', 'files/rename', { from: at, to: `${at}-renamed` });
    case 'file.remove':
      await raw('PUT', `files?path=${at}`, 'content');
      return await raw('DELETE', `files?path=${at}`);
    case 'file.chmod':
      await raw('PUT', `files?path=${at}`, 'content');
      return await raw('POST', 'files/chmod', { path: at, mode: 0o600 });
    case 'file.chown':
      await raw('PUT', `files?path=${at}`, 'content');
      return await raw('POST', 'files/chown', { path: at, owner: '1000' });
    case 'file.truncate':
      await raw('PUT', `files?path=${at}`, 'content');
      return await raw('POST', 'files/truncate', { path: at, size: 1 });
    default:
      return void (await daemon.call(verb as 'sandbox.get', { ref }));
  }
}
