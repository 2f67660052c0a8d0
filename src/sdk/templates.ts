// Templates: recipes in, snapshots with a tag out, from which sandboxes start (`Hutch.create({ template })`).
import type { Input, Output } from '../services/verbs.ts';
import type { ApiClient, CallOptions } from './client.ts';
import { split } from './files.ts';

export class Templates {
  readonly #client: ApiClient;

  constructor(client: ApiClient) {
    this.#client = client;
  }

  /** Begins to build it, or to build it anew: what has the name serves until the new one is ready. Watched as a build (`build.get`). */
  async build(options: Input<'template.build'> & CallOptions): Promise<Output<'template.build'>> {
    const { own, call } = split(options);
    return await this.#client.call('template.build', own, call);
  }

  async list(options: CallOptions = {}): Promise<Output<'template.list'>['templates']> {
    return (await this.#client.call('template.list', {}, options)).templates;
  }

  async get(template: string, options: CallOptions = {}): Promise<Output<'template.get'>> {
    return await this.#client.call('template.get', { template }, options);
  }

  /** How many sandboxes of it are kept ready: at least `min`, up to `max` while they are asked for. */
  async set(template: string, options: Pick<Input<'template.set'>, 'warm'> & CallOptions): Promise<Output<'template.set'>> {
    const { own, call } = split(options);
    return await this.#client.call('template.set', { ...own, template }, call);
  }

  /** `force`: though sandboxes or snapshots were made from it: they stay. */
  async remove(template: string, options: CallOptions & { readonly force?: boolean } = {}): Promise<Output<'template.remove'>> {
    const { own, call } = split(options);
    return await this.#client.call('template.remove', { ...own, template }, call);
  }
}
