// Manifests of images that were read before: one whose file is still the same need not be read and parsed anew. Always true: what is
// given is what the file says now, as a change is a file put in its place (`writeFileAtomic`), or a directory made anew.
import type { FileInfo } from '../host/host.ts';
import type { ImageManifest } from './image.ts';

/** Of some hundred bytes to a few kB each. */
const KEPT_MAX = 256;

export class ManifestsRead {
  /** By directory of the image; the one that came last is the last. */
  readonly #of = new Map<string, { readonly file: FileInfo; readonly manifest: ImageManifest }>();

  /** `file`: as it is now. */
  get(dir: string, file: FileInfo): ImageManifest | null {
    const known = this.#of.get(dir);
    if (known === undefined) return null;
    const { inode, device, sizeBytes, changedNs } = known.file;
    const isSame = inode === file.inode && device === file.device && sizeBytes === file.sizeBytes && changedNs === file.changedNs;
    return isSame ? known.manifest : null;
  }

  /** `file`: as it was before it was read. */
  put(dir: string, file: FileInfo, manifest: ImageManifest): void {
    this.#of.delete(dir);
    this.#of.set(dir, { file, manifest });
    const [oldest] = this.#of.keys();
    if (this.#of.size > KEPT_MAX && oldest !== undefined) this.#of.delete(oldest);
  }
}
