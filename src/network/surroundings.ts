// What of the host's own network a sandbox's carrier looks at once, when it starts: who is started after a
// change of it works otherwise than who was started before.
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { hostResolvers } from './resolvers.ts';

const ROUTES = '/proc/net/route';
const FILE_BYTES_MAX = 1024 * 1024;
/** In that table: destination 0.0.0.0. */
const ANYWHERE = '00000000';

/** Equal as long as the resolvers and the ways to the internet are the same. */
export async function surroundings(op: Operation, host: Host): Promise<string> {
  const [resolvers, routes] = await Promise.all([hostResolvers(op, host), host.readFile(op, ROUTES, FILE_BYTES_MAX)]);
  return JSON.stringify([resolvers, defaultRoutes(new TextDecoder().decode(routes))]);
}

/** Interface and gateway of each, of `/proc/net/route`. */
export function defaultRoutes(table: string): readonly string[] {
  const rows = table.split('\n').map((line) => line.trim().split(/\s+/));
  return rows.filter(([, destination]) => destination === ANYWHERE).map(([name, , gateway]) => `${name} ${gateway}`);
}
