// The table of published ports: who has which port of this machine, from the moment when a sandbox is
// begun to be made until it is deleted, whether it runs or not.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import { hostSide, type PublishedPort, sharePort } from '../domain/published-port.ts';
import { idColumn } from './columns.ts';
import type { ChangeMap, QueryMap } from './contract.ts';
import type { Db, Row } from './db.ts';
import type { Tx } from './tx.ts';

const row = z.object({ sandbox_id: idColumn('sbx'), host_address: z.string(), host_port: z.int(), guest_port: z.int() });

function fromRow(raw: Row): PublishedPort & { readonly sandboxId: z.output<typeof row>['sandbox_id'] } {
  const { sandbox_id, host_address, host_port, guest_port } = row.parse(raw);
  return { sandboxId: sandbox_id, hostAddress: host_address, hostPort: host_port, guestPort: guest_port };
}

export function reservePorts(tx: Tx, { sandboxId, ports }: ChangeMap['reservePorts']['args']): null {
  for (const port of ports) {
    const holder = tx.db
      .all('SELECT * FROM published_ports WHERE host_port = ?', port.hostPort)
      .map(fromRow)
      .find((held) => sharePort(held, port));
    if (holder !== undefined) {
      throw new HutchError({
        code: 'conflict',
        message: `port ${hostSide(port)} is published by ${holder.sandboxId === sandboxId ? 'this sandbox already' : ownerOf(tx.db, holder.sandboxId)}`,
        hint: 'choose another, or leave the port of this machine out: a free one is taken',
      });
    }
    tx.db.run(
      'INSERT INTO published_ports (sandbox_id, host_address, host_port, guest_port) VALUES (?, ?, ?, ?)',
      sandboxId,
      port.hostAddress,
      port.hostPort,
      port.guestPort,
    );
  }
  return null;
}

export function releasePorts(tx: Tx, { sandboxId, ports }: ChangeMap['releasePorts']['args']): null {
  if (ports === undefined) tx.db.run('DELETE FROM published_ports WHERE sandbox_id = ?', sandboxId);
  for (const { hostAddress, hostPort, guestPort } of ports ?? []) {
    tx.db.run(
      'DELETE FROM published_ports WHERE sandbox_id = ? AND host_address = ? AND host_port = ? AND guest_port = ?',
      sandboxId,
      hostAddress,
      hostPort,
      guestPort,
    );
  }
  return null;
}

export function listPorts(db: Db): QueryMap['publishedPorts']['result'] {
  return db.all('SELECT * FROM published_ports ORDER BY sandbox_id, host_port, host_address').map(fromRow);
}

function ownerOf(db: Db, sandboxId: string): string {
  const name = db.get('SELECT name FROM sandboxes WHERE id = ?', sandboxId)?.['name'];
  return name === undefined ? `sandbox ${sandboxId}, which is being made` : `sandbox ${name}`;
}
