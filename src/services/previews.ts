// Shared ports: a link that whoever has it may open until it expires. What it says is signed with a key of this daemon, so
// nothing of it is kept; what was shared before a moment can be taken back.
import { createHmac, timingSafeEqual } from 'node:crypto';
import { join } from 'node:path';
import { HutchError } from '../domain/errors.ts';
import { isId, type SandboxId } from '../domain/ids.ts';
import { type PreviewHost, previewHost } from '../domain/preview.ts';
import type { Operation } from '../host/operation.ts';
import type { Core } from './core.ts';
import type { Handlers, Tunnel } from './handlers.ts';

const KEY_BYTES = 32;
const TOKEN_CHARS_MAX = 256;
const FORM =
  /^(?<said>(?<port>\d{1,5})\.(?<expires>[0-9a-z]{1,10})\.(?<made>[0-9a-z]{1,10})\.(?<id>sbx[0-9a-z]{17}))\.(?<signature>[A-Za-z0-9_-]{43})$/;

/** Of a request, where it may pass. */
export type Preview = { readonly sandboxId: SandboxId; readonly name: string; readonly port: number; readonly expiresAtMs: number };

export type Previews = {
  /** Of which hosts, and at which of them the API listens; null: it does not. */
  readonly domain: string;
  listensAt(address: { readonly host: string; readonly port: number } | null): void;
  /** @throws HutchError `permission_denied` that says why it may not. */
  admit(token: string | null, host: PreviewHost): Promise<Preview>;
  /** Bytes to and from the port inside, until `use` ends. */
  connect(
    preview: Pick<Preview, 'sandboxId' | 'port'>,
    signal: AbortSignal | undefined,
    use: (tunnel: Tunnel) => Promise<void>,
  ): Promise<void>;
};

const LOOPBACK = /^(?:127\.|::1$|localhost$)/;

export function newPreviews(
  core: Core,
  handlers: Pick<Handlers, 'port.connect'>,
): Previews & Pick<Handlers, 'port.share' | 'port.unshare'> {
  const { host, places, store, settings } = core.deps;
  let address: { readonly host: string; readonly port: number } | null = null;
  let reading: Promise<Uint8Array> | null = null;

  async function key(op: Operation): Promise<Uint8Array> {
    reading ??= readKey(op);
    try {
      return await reading;
    } catch (error) {
      reading = null;
      throw error;
    }
  }

  async function readKey(op: Operation): Promise<Uint8Array> {
    const path = join(places.dataDir, 'preview.key');
    if ((await host.stat(op, path)) === null) await host.writeFileAtomic(op, path, host.randomBytes(KEY_BYTES), 0o600);
    const found = await host.readFile(op, path, 4_096);
    if (found.byteLength !== KEY_BYTES) throw op.error('internal', `${path} is not the key that was written there; remove it`);
    return found;
  }

  async function admit(op: Operation, token: string | null, wanted: PreviewHost): Promise<Preview> {
    const denied = (why: string) => op.error('permission_denied', why, { hint: 'ask whoever shared it for a new link' });
    if (token === null) throw denied('this is a shared port of a sandbox, and is opened by the link that was shared');
    const found = token.length > TOKEN_CHARS_MAX ? undefined : FORM.exec(token)?.groups;
    const { said = '', id = '', signature = '' } = found ?? {};
    if (found === undefined || !isSigned(await key(op), said, signature) || !isId('sbx', id))
      throw denied('this link is not one that was shared here');
    const [port, expiresAtMs, madeAtMs] = [
      Number(found['port']),
      Number.parseInt(found['expires'] ?? '', 36),
      Number.parseInt(found['made'] ?? '', 36),
    ];
    if (expiresAtMs <= host.nowMs()) throw denied(`this link has expired, at ${new Date(expiresAtMs).toISOString()}`);
    const since = await store.query('setting', { key: revokedKey(id, port) });
    if (typeof since === 'number' && madeAtMs <= since) throw denied('this link was taken back by whoever shared it');
    const sandbox = await store.query('sandbox', { id });
    if (sandbox === null || sandbox.state === 'deleted') throw denied('the sandbox of this link is deleted');
    const { name } = sandbox.spec;
    if (port !== wanted.port || (wanted.name !== id && wanted.name !== name)) throw denied('this link is for another address');
    return { sandboxId: id, name, port, expiresAtMs };
  }

  /** As the project of the sandbox: the link is what lets in. */
  async function run<T>(
    projectId: string,
    signal: AbortSignal | undefined,
    work: Parameters<typeof core.operations.run<T>>[1],
  ): Promise<T> {
    const caller = { actor: 'link', keyId: null, projectId: projectId as typeof store.defaultProjectId };
    return await core.operations.run({ verb: 'port.connect', caller, reads: true, ...(signal === undefined ? {} : { signal }) }, work);
  }

  return {
    domain: settings.previewDomain,
    listensAt(now) {
      address = now;
    },
    admit: (token, wanted) => run(store.defaultProjectId, undefined, ({ op }) => admit(op, token, wanted)),
    async connect({ sandboxId, port }, signal, use) {
      const sandbox = await store.query('sandbox', { id: sandboxId });
      if (sandbox === null) throw new HutchError({ code: 'not_found', message: 'the sandbox of this link is deleted' });
      await run(sandbox.projectId, signal, async (call) => {
        using tunnel = await handlers['port.connect'](call, { ref: sandboxId, port });
        await use(tunnel);
      });
    },
    'port.share': async ({ op, caller, target }, { ref, port, expiresInMs }) => {
      const { id, spec, state } = await core.sandboxes.resolve(caller.projectId, ref);
      target(id);
      if (state === 'deleted') throw op.error('failed_precondition', `sandbox ${spec.name} is deleted`);
      if (address === null)
        throw op.error('failed_precondition', 'the daemon listens at no address of this machine, so nobody can open what is shared', {
          hint: 'set daemon.listen in the configuration, such as 127.0.0.1:4880, and restart the daemon: hutch daemon stop',
        });
      const [madeAtMs, expiresAtMs] = [host.nowMs(), host.nowMs() + expiresInMs];
      const said = `${port}.${expiresAtMs.toString(36)}.${madeAtMs.toString(36)}.${id}`;
      const name = `${previewHost(port, { id, name: spec.name }, settings.previewDomain)}:${address.port}`;
      return {
        url: `http://${name}/?hutch_preview=${said}.${sign(await key(op), said)}`,
        host: name,
        guestPort: port,
        expiresAtMs,
        reach: LOOPBACK.test(address.host) ? ('this-machine' as const) : ('network' as const),
      };
    },
    'port.unshare': async (call, { ref, port }) => {
      const { id } = await core.sandboxes.resolve(call.caller.projectId, ref);
      call.target(id);
      await call.commit([{ change: 'setSetting', key: revokedKey(id, port), value: host.nowMs() }]);
      return {};
    },
  };
}

function revokedKey(id: SandboxId, port: number): string {
  return `preview.revoked.${id}.${port}`;
}

function sign(key: Uint8Array, said: string): string {
  return createHmac('sha256', key).update(`hutch-preview:${said}`).digest('base64url');
}

function isSigned(key: Uint8Array, said: string, signature: string): boolean {
  const [ours, theirs] = [Buffer.from(sign(key, said)), Buffer.from(signature)];
  return ours.byteLength === theirs.byteLength && timingSafeEqual(ours, theirs);
}
