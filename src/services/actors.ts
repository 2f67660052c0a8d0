// Who asked, by name: records keep the id of a key, people know it by its name.
import { isId } from '../domain/ids.ts';
import type { Store } from '../store/contract.ts';

export class Actors {
  readonly #store: Pick<Store, 'query'>;
  /** Of keys, revoked ones too: a name stays with its key for ever. */
  readonly #names = new Map<string, string>();

  constructor(store: Pick<Store, 'query'>) {
    this.#store = store;
  }

  /** The names of those of them that are keys. */
  async names(actors: Iterable<string>): Promise<ReadonlyMap<string, string>> {
    const isUnknown = (actor: string): boolean => isId('key', actor) && !this.#names.has(actor);
    if ([...actors].some(isUnknown)) for (const { id, name } of await this.#store.query('keys', {})) this.#names.set(id, name);
    return this.#names;
  }
}
