// Files of one sandbox.
import type { Readable } from 'node:stream';
import type { Input, Output } from '../services/verbs.ts';
import type { ApiClient, CallOptions } from './client.ts';

export type FileEntry = Output<'file.stat'>;
export type FileChange = Output<'file.watch'>;
/** What can be written: text as UTF-8, bytes, or a stream of them. */
export type Content = string | Uint8Array | AsyncIterable<Uint8Array> | Readable;

type Of<
  N extends
    | 'file.read'
    | 'file.write'
    | 'file.mkdir'
    | 'file.list'
    | 'file.watch'
    | 'file.remove'
    | 'file.chown'
    | 'archive.get'
    | 'archive.put',
> = Omit<Input<N>, 'ref' | 'path'> & CallOptions;

export class Files {
  readonly #client: ApiClient;
  readonly #ref: string;

  constructor(client: ApiClient, ref: string) {
    this.#client = client;
    this.#ref = ref;
  }

  /** The bytes of a file, as they come. */
  async readStream(path: string, options: Of<'file.read'> = {}): Promise<AsyncIterable<Uint8Array>> {
    const { own, call } = split(options);
    return (await this.#client.download('file.read', { ...own, ref: this.#ref, path }, call)).bytes;
  }

  /** The whole file. */
  async read(path: string, options: Of<'file.read'> = {}): Promise<Buffer> {
    const chunks: Uint8Array[] = [];
    for await (const chunk of await this.readStream(path, options)) chunks.push(chunk);
    return Buffer.concat(chunks);
  }

  async readText(path: string, options: Of<'file.read'> = {}): Promise<string> {
    return (await this.read(path, options)).toString('utf8');
  }

  /** Writes the file whole and atomically, or from `at` on in place. */
  async write(path: string, content: Content, options: Of<'file.write'> = {}): Promise<FileEntry> {
    const { own, call } = split(options);
    return await this.#client.upload('file.write', { ...own, ref: this.#ref, path }, toBytes(content), call);
  }

  async stat(path: string, options: CallOptions & { readonly follow?: boolean; readonly user?: string } = {}): Promise<FileEntry> {
    const { own, call } = split(options);
    return await this.#client.call('file.stat', { ...own, ref: this.#ref, path }, call);
  }

  list(path: string, options: Of<'file.list'> = {}): AsyncGenerator<FileEntry, void, undefined> {
    const { own, call } = split(options);
    return this.#client.lines('file.list', { ...own, ref: this.#ref, path }, call);
  }

  watch(path: string, options: Of<'file.watch'> = {}): AsyncGenerator<FileChange, void, undefined> {
    const { own, call } = split(options);
    return this.#client.lines('file.watch', { ...own, ref: this.#ref, path }, call);
  }

  async mkdir(path: string, options: Of<'file.mkdir'> = {}): Promise<FileEntry> {
    const { own, call } = split(options);
    return await this.#client.call('file.mkdir', { ...own, ref: this.#ref, path }, call);
  }

  async rename(from: string, to: string, options: CallOptions & { readonly user?: string } = {}): Promise<FileEntry> {
    const { own, call } = split(options);
    return await this.#client.call('file.rename', { ...own, ref: this.#ref, from, to }, call);
  }

  async remove(path: string, options: Of<'file.remove'> = {}): Promise<void> {
    const { own, call } = split(options);
    await this.#client.call('file.remove', { ...own, ref: this.#ref, path }, call);
  }

  async chmod(path: string, mode: number, options: CallOptions = {}): Promise<FileEntry> {
    return await this.#client.call('file.chmod', { ref: this.#ref, path, mode }, options);
  }

  async chown(path: string, owner: string, options: Omit<Of<'file.chown'>, 'owner'> = {}): Promise<FileEntry> {
    const { own, call } = split(options);
    return await this.#client.call('file.chown', { ...own, ref: this.#ref, path, owner }, call);
  }

  /** Makes `path` a symbolic link to `target`. */
  async symlink(path: string, target: string, options: CallOptions = {}): Promise<FileEntry> {
    return await this.#client.call('file.symlink', { ref: this.#ref, path, target }, options);
  }

  async truncate(path: string, size: number, options: CallOptions = {}): Promise<FileEntry> {
    return await this.#client.call('file.truncate', { ref: this.#ref, path, size }, options);
  }

  /** A path as a tar stream. */
  async archive(path: string, options: Of<'archive.get'> = {}): Promise<AsyncIterable<Uint8Array>> {
    const { own, call } = split(options);
    return (await this.#client.download('archive.get', { ...own, ref: this.#ref, path }, call)).bytes;
  }

  /** Unpacks a tar stream below a directory. */
  async unpack(path: string, tar: Content, options: Of<'archive.put'> = {}): Promise<Output<'archive.put'>> {
    const { own, call } = split(options);
    return await this.#client.upload('archive.put', { ...own, ref: this.#ref, path }, toBytes(tar), call);
  }
}

export function toBytes(content: Content): Uint8Array | AsyncIterable<Uint8Array> {
  return typeof content === 'string' ? Buffer.from(content, 'utf8') : content;
}

/** The members of an input, apart from those of the call. */
export function split<T extends CallOptions>(options: T): { readonly own: Omit<T, keyof CallOptions>; readonly call: CallOptions } {
  const { signal, idempotencyKey, traceparent, onOpId, ...own } = options;
  return {
    own,
    call: {
      signal,
      ...(idempotencyKey === undefined ? {} : { idempotencyKey }),
      ...(traceparent === undefined ? {} : { traceparent }),
      ...(onOpId === undefined ? {} : { onOpId }),
    },
  };
}
