// An image of one program, with a configuration of its own.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { DockerEngine } from '../support/docker-engine.ts';

const SCRIPT =
  'mkdir -p bin etc work && cp /bin/busybox bin/ && for a in sh cat id pwd echo env ls sleep; do ln -s busybox bin/$a; done && echo "tool:x:1234:1234::/work:/bin/sh" > etc/passwd && echo "tool:x:1234:" > etc/group && tar cf - bin etc work';
const CHANGES = ['ENV FROM_IMAGE=yes', 'USER tool', 'WORKDIR /work', 'ENTRYPOINT ["/bin/cat"]', 'CMD ["/etc/passwd"]', 'EXPOSE 80/tcp'];

/** Brought into the Engine under that name; its id. */
export async function importTool(engine: DockerEngine, repository: string, tag: string): Promise<string> {
  const dir = mkdtempSync(join(tmpdir(), 'hutch-image-'));
  try {
    const made = spawnSync('sh', ['-c', SCRIPT], { cwd: dir, maxBuffer: 64 * 1024 * 1024 });
    if (made.status !== 0) throw new Error(made.stderr.toString());
    const id = await engine.import(repository, tag, { tar: made.stdout, changes: CHANGES });
    if (!id.startsWith('sha256:')) throw new Error(`the Engine did not import it: ${id}`);
    return id;
  } finally {
    rmSync(dir, { recursive: true });
  }
}
