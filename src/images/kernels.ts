// The kernels of this machine: brought from the distribution or from a file, looked at, removed. It knows
// files; who uses a kernel, and which one is the default, the store knows.
import { join } from 'node:path';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { DownloadEnv } from './apt.ts';
import { kernelOfPackages, listKernels, openKernel, type PreparedKernel, verifyKernel } from './kernel.ts';
import { kernelOfFiles } from './kernel-files.ts';
import { importKernel } from './kernel-import.ts';
import { availableKernels, downloadKernel, type KernelPackage } from './kernel-packages.ts';
import { alone, type ImagePaths } from './layout.ts';

export class KernelLibrary {
  readonly #host: Host;
  readonly #paths: ImagePaths;
  readonly #env: DownloadEnv;

  constructor(host: Host, paths: ImagePaths, env: DownloadEnv) {
    this.#host = host;
    this.#paths = paths;
    this.#env = env;
  }

  /** What the distribution offers, the newest first. @throws HutchError `unavailable`. */
  async available(op: Operation): Promise<readonly KernelPackage[]> {
    return await availableKernels(op, this.#host);
  }

  /** All that lie here whole, the newest first. */
  async here(op: Operation): Promise<readonly PreparedKernel[]> {
    return await listKernels(op, this.#host, this.#paths);
  }

  /** By package, version or flavour; null: what Hutch would take. One that is here already is found again. */
  async pull(op: Operation, wanted: string | null): Promise<PreparedKernel> {
    return await this.#staged(op, /\.deb$/, async (staging) => {
      const packages = await downloadKernel(op, this.#host, wanted, staging, this.#env);
      return await kernelOfPackages(op, this.#host, this.#paths, staging, packages, 'user');
    });
  }

  /** @throws HutchError `failed_precondition` for what is no kernel that guests boot. */
  async import(op: Operation, source: AsyncIterable<Uint8Array>): Promise<PreparedKernel> {
    // What an interrupted pull left stays for the next one.
    return await this.#staged(op, /\.deb$/, (staging) => importKernel(op, this.#host, this.#paths, staging, source));
  }

  /** Of files that stay the user's. @throws HutchError `failed_precondition` for what is no kernel that guests boot. */
  async ofFiles(op: Operation, files: { readonly image: string; readonly modules: string | null }): Promise<PreparedKernel> {
    return await this.#staged(op, /\.deb$/, (staging) => kernelOfFiles(op, this.#host, this.#paths, staging, files));
  }

  /** Reads all of it. @throws HutchError `failed_precondition` naming what is not what it was. */
  async verify(op: Operation, digest: string): Promise<void> {
    const kernel = await openKernel(op, this.#host, this.#paths, digest);
    if (kernel === null) {
      throw op.error('failed_precondition', `the kernel ${digest} is not in ${this.#paths.kernels}`, {
        hint: 'bring it again as it came: pull or import it',
      });
    }
    await verifyKernel(op, this.#host, this.#paths, digest);
  }

  async remove(op: Operation, digest: string): Promise<void> {
    await this.#host.remove(op, join(this.#paths.kernels, digest.replace(/^sha256:/, '')));
  }

  async #staged(op: Operation, keep: RegExp, make: (staging: string) => Promise<PreparedKernel>): Promise<PreparedKernel> {
    return await alone(op, this.#host, this.#paths, 'kernel', { find: async () => null, keep, make });
  }
}
