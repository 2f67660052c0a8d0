// Which part of the service a daemon is. Every section of the API (the first word of a verb) belongs to a
// role, or to every daemon by itself; a daemon carries out what its roles are and hands on the rest. A
// role that comes later is a word here and a section in the table: nothing else knows of it.
import type { VerbName } from './verbs.ts';

export const ROLES = ['vm'] as const;
export type Role = (typeof ROLES)[number];

type Section = VerbName extends infer N ? (N extends `${infer S}.${string}` ? S : never) : never;

/** `every`: about the daemon that is asked, whatever its roles. */
const ROLE_OF: Readonly<Record<Section, Role | 'every'>> = {
  sandbox: 'vm',
  main: 'vm',
  workspace: 'vm',
  exec: 'vm',
  port: 'vm',
  file: 'vm',
  archive: 'vm',
  // What is recorded in one commit with a sandbox's state lies where the sandboxes are.
  event: 'vm',
  operation: 'vm',
  why: 'vm',
  ledger: 'vm',
  backends: 'vm',
  doctor: 'vm',
  system: 'vm',
  image: 'vm',
  kernel: 'vm',
  build: 'vm',
  snapshot: 'vm',
  template: 'vm',
  volume: 'vm',
  ssh: 'vm',
  asset: 'vm',
  quota: 'vm',
  key: 'every',
  config: 'every',
  daemon: 'every',
};

export function roleOf(verb: VerbName): Role | 'every' {
  return ROLE_OF[verb.slice(0, verb.indexOf('.')) as Section];
}
