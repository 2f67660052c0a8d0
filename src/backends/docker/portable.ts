// Snapshots that travel: each layer that was written above the image, as the archive that it is. They are told by digest, and the Engine to
// which they come looks itself whether each is that.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { Portable } from '../snapshots.ts';
import { type LayerFile, layerPath } from './layers.ts';
import { parseMachine, readSaved, writeSaved } from './saved.ts';

const MODE = 0o600;

export function newPortable({
  host,
  layersIn,
}: {
  readonly host: Host;
  readonly layersIn: (op: Operation, dir: string, scratch: string) => Promise<readonly LayerFile[]>;
}): Portable {
  return {
    async parts(op, dir, scratch) {
      const files = await layersIn(op, dir, scratch);
      const { layers } = await readSaved(op, host, dir);
      const named = files.map(({ digest, bytes }) => ({ digest, bytes }));
      return {
        machine: { version: 1, layers, files: named },
        parts: files.map(({ path, bytes }, at) => ({ name: nameOf(at), path, bytes, places: bytes === 0 ? [] : [[0, bytes]] })),
      };
    },
    async place(op, dir, machine, { contents }) {
      const refused = (why: string): Error => op.error('failed_precondition', `the snapshot cannot be used: ${why}`);
      const said = parseMachine(machine);
      if (said === null) throw refused('what it says of its machine is damaged');
      if (contents !== 'disk') throw refused('a container is kept without its memory');
      await host.makeDir(op, dir, 0o700);
      return {
        parts: said.files.map(({ digest, bytes }, at) => ({ name: nameOf(at), path: layerPath(dir, digest), bytesMax: bytes, mode: MODE })),
        complete: (late) => writeSaved(late, host, dir, { ...said, image: null }),
      };
    },
  };
}

function nameOf(at: number): string {
  return `layer/${at}`;
}
