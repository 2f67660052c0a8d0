// The way in: a connection to one daemon, and what can be asked of it beside a single sandbox.
import { placesOf } from '../config/places.ts';
import type { Input, Output } from '../services/verbs.ts';
import { type Address, parseAddress } from './address.ts';
import { ApiClient, type CallOptions, type ClientOptions, type Progress } from './client.ts';
import { split } from './files.ts';
import { readOwnerKey } from './owner-key.ts';
import { deleteQuietly, Sandbox, type SandboxInfo } from './sandbox.ts';
import { Snapshots } from './snapshots.ts';
import { Templates } from './templates.ts';

export type ConnectOptions = {
  /** `unix:/run/hutch/hutch.sock` or `http://127.0.0.1:4880`. Default: `HUTCH_API_URL`, else this machine's own daemon. */
  readonly url?: string;
  /** Default: `HUTCH_API_KEY`, else the owner's key of this machine's daemon. */
  readonly apiKey?: string;
} & Pick<ClientOptions, 'retryForMs' | 'onUnreachable'>;

export type CreateOptions = Input<'sandbox.create'> & CallOptions & { readonly onProgress?: (progress: Progress) => void };
export type Event = Output<'event.list'>;
export type Operation = Output<'operation.get'>;

export class Hutch implements Disposable {
  /** Every verb of the API, for what has no method of its own. */
  readonly api: ApiClient;
  readonly snapshots: Snapshots;
  readonly templates: Templates;

  constructor(api: ApiClient) {
    this.api = api;
    this.snapshots = new Snapshots(api);
    this.templates = new Templates(api);
  }

  /** Nothing is sent before the first call. @throws HutchError `invalid_argument` for an address that is none. */
  static connect(options: ConnectOptions = {}): Hutch {
    const { url, apiKey, ...rest } = options;
    const places = placesOf({ env: process.env, uid: process.getuid?.() ?? 0 });
    const given = url ?? process.env['HUTCH_API_URL'];
    const address: Address = given === undefined || given === '' ? { type: 'unix', path: places.socketPath } : parseAddress(given);
    const key = apiKey ?? process.env['HUTCH_API_KEY'];
    return new Hutch(
      new ApiClient({ ...rest, address, key: key === undefined || key === '' ? () => readOwnerKey(places.ownerKeyPath) : key }),
    );
  }

  /** A new sandbox on this machine's daemon; leaving the block of `await using` deletes it. */
  static async create(options: CreateOptions & ConnectOptions = {}): Promise<Sandbox> {
    const { url, apiKey, retryForMs, onUnreachable, ...create } = options;
    const hutch = Hutch.connect({
      ...(url === undefined ? {} : { url }),
      ...(apiKey === undefined ? {} : { apiKey }),
      ...(retryForMs === undefined ? {} : { retryForMs }),
      ...(onUnreachable === undefined ? {} : { onUnreachable }),
    });
    return await hutch.create(create);
  }

  async create(options: CreateOptions = {}): Promise<Sandbox> {
    const { onProgress, ...rest } = options;
    const { own, call } = split(rest);
    const info = await this.api.call('sandbox.create', own, { ...call, ...(onProgress === undefined ? {} : { onProgress }) });
    return new Sandbox(this.api, info, () => deleteQuietly(this.api, info.id));
  }

  /** One that exists, by id, name or unique prefix. Leaving a block does not delete it. */
  async sandbox(ref: string, options: CallOptions = {}): Promise<Sandbox> {
    return new Sandbox(this.api, await this.api.call('sandbox.get', { ref }, options), async () => {});
  }

  /** All of them, newest first, page by page. */
  async *list(options: Omit<Input<'sandbox.list'>, 'cursor'> & CallOptions = {}): AsyncGenerator<SandboxInfo, void, undefined> {
    const { own, call } = split(options);
    let cursor: string | null = null;
    do {
      const page: Output<'sandbox.list'> = await this.api.call('sandbox.list', { ...own, ...(cursor === null ? {} : { cursor }) }, call);
      yield* page.sandboxes;
      cursor = page.nextCursor;
    } while (cursor !== null);
  }

  events(options: Input<'event.list'> & CallOptions = {}): AsyncGenerator<Event, void, undefined> {
    const { own, call } = split(options);
    return this.api.lines('event.list', own, call);
  }

  async operations(options: Input<'operation.list'> & CallOptions = {}): Promise<Operation[]> {
    const { own, call } = split(options);
    return (await this.api.call('operation.list', own, call)).operations;
  }

  async cancelOperation(opId: string, options: CallOptions = {}): Promise<Operation> {
    return await this.api.call('operation.cancel', { opId }, options);
  }

  async why(ref: string, options: CallOptions = {}): Promise<Output<'why.get'>> {
    return await this.api.call('why.get', { ref }, options);
  }

  async version(options: CallOptions = {}): Promise<Output<'daemon.version'>> {
    return await this.api.call('daemon.version', {}, options);
  }

  /** Closes idle connections; sandboxes and commands go on. */
  [Symbol.dispose](): void {
    this.api[Symbol.dispose]();
  }
}
