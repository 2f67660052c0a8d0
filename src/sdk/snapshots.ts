// Snapshots: sandboxes of one instant, kept under a name; and what carries them to another machine.
import type { Carry } from '../domain/snapshot.ts';
import type { Input, Output } from '../services/verbs.ts';
import type { ApiClient, CallOptions } from './client.ts';
import { type Content, split, toBytes } from './files.ts';

type Of<N extends 'snapshot.list' | 'snapshot.prune'> = Input<N> & CallOptions;

export class Snapshots {
  readonly #client: ApiClient;

  constructor(client: ApiClient) {
    this.#client = client;
  }

  /** Parents before what stands on them. */
  async list(options: Of<'snapshot.list'> = {}): Promise<Output<'snapshot.list'>['snapshots']> {
    const { own, call } = split(options);
    return (await this.#client.call('snapshot.list', own, call)).snapshots;
  }

  async get(snapshot: string, options: CallOptions = {}): Promise<Output<'snapshot.get'>> {
    return await this.#client.call('snapshot.get', { snapshot }, options);
  }

  /** @throws HutchError `failed_precondition` for one that others stand on, unless `cascade`. */
  async remove(snapshot: string, options: CallOptions & { readonly cascade?: boolean } = {}): Promise<Output<'snapshot.remove'>> {
    const { own, call } = split(options);
    return await this.#client.call('snapshot.remove', { ...own, snapshot }, call);
  }

  /** Compares every file of it with what was written. @throws HutchError naming what differs. */
  async verify(snapshot: string, options: CallOptions = {}): Promise<Output<'snapshot.verify'>> {
    return await this.#client.call('snapshot.verify', { snapshot }, options);
  }

  /** Which files differ on two disks of one image: of snapshots, or of sandboxes as they are, running or not. */
  async diff(before: string, after: string, options: CallOptions = {}): Promise<Output<'snapshot.diff'>> {
    return await this.#client.call('snapshot.diff', { snapshot: before, to: after }, options);
  }

  /** The bytes of one file that needs no other snapshot, as they come. `carry`: what goes along of image and kernel. */
  async export(snapshot: string, options: CallOptions & { readonly carry?: Carry } = {}): Promise<AsyncIterable<Uint8Array>> {
    const { own, call } = split(options);
    return (await this.#client.download('snapshot.export', { ...own, snapshot }, call)).bytes;
  }

  /** What `export` gave, here or elsewhere. Why its memory cannot go on here is its `misfit`. */
  async import(content: Content, options: CallOptions & { readonly name?: string } = {}): Promise<Output<'snapshot.import'>> {
    const { own, call } = split(options);
    return await this.#client.upload('snapshot.import', own, toBytes(content), call);
  }

  /** To a registry, under a reference such as `registry.example/team/ready:1`. */
  async push(snapshot: string, name: string, options: CallOptions & { readonly carry?: Carry } = {}): Promise<Output<'snapshot.push'>> {
    const { own, call } = split(options);
    return await this.#client.call('snapshot.push', { ...own, snapshot, name }, call);
  }

  /** `as`: instead of the name that it brings. */
  async pull(name: string, options: CallOptions & { readonly as?: string } = {}): Promise<Output<'snapshot.pull'>> {
    const { own, call } = split(options);
    return await this.#client.call('snapshot.pull', { ...own, name }, call);
  }

  /** Removes by a policy, of which one part must be given; what something stands on stays. */
  async prune(options: Of<'snapshot.prune'>): Promise<Output<'snapshot.prune'>> {
    const { own, call } = split(options);
    return await this.#client.call('snapshot.prune', own, call);
  }
}
