// The real daemon over the real backends, with a fault at one of its two doors when the
// environment asks for one:
//   HUTCH_TEST_FAULT=die-after:7:sandbox.create     a call to the system; see hostWithFault
//   HUTCH_TEST_STORE_FAULT=die-after:1:applyEvent   a commit; see storeWithFault
//   HUTCH_TEST_FAULT_REPORT=PATH                    what was hit, as a line of JSON
//   HUTCH_TEST_PATH=DIRS                            where programs are looked for
//   HUTCH_TEST_DEAF_GUEST=1                         after its link is up, nothing of ours reaches a guest any more
//   HUTCH_TEST_COUNT=VERB HUTCH_TEST_COUNT_REPORT=PATH   how many calls its operations made, at the end
//   HUTCH_TEST_ARMED=PATH                           a file that says the two faults when it comes, or HUTCH_TEST_POINTS=VERB:
//                                                   at which points of its operations a death leaves something else, a line each
//   HUTCH_TEST_NO_TEMPLATE=1                        its first sandbox boots a machine, as a new user's does
// Image, kernel and initramfs are those of this checkout, linked in; templates are copies of what was booted for another test, and
// all else is its own.
import { appendFileSync, copyFileSync, linkSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { join, resolve } from 'node:path';
import type { Duplex } from 'node:stream';
import type { Backend } from '../../src/backends/backend.ts';
import { makeParts } from '../../src/daemon/parts.ts';
import { runDaemon } from '../../src/daemon/run.ts';
import type { Host } from '../../src/host/host.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import type { Store } from '../../src/store/contract.ts';
import { whenArmed } from '../support/armed.ts';
import { countCalls, describeCall, type FaultyHost, hostWithFault, watchCalls } from '../support/host-faults.ts';
import { storeWithFault } from '../support/store-faults.ts';
import { seedTemplates } from '../support/templates.ts';

const { env } = process;
const home = env['HUTCH_HOME'];
if (home === undefined) throw new Error('HUTCH_HOME is not set');
const report = env['HUTCH_TEST_FAULT_REPORT'];
type Told = Readonly<Record<string, string | undefined>>;
const armed = env['HUTCH_TEST_ARMED'];

// HUTCH_TEST_BARE=1: a machine on which nothing has been prepared
for (const name of env['HUTCH_TEST_BARE'] === undefined ? ['images', 'kernels', 'initramfs'] : [])
  linkTree(resolve(import.meta.dirname, '../../.tools/data', name), join(home, 'data', name));
if (env['HUTCH_TEST_BARE'] === undefined && env['HUTCH_TEST_NO_TEMPLATE'] === undefined) seedTemplates(home);

const path = env['HUTCH_TEST_PATH'];
const real = nodeHost(path === undefined ? {} : { env: { PATH: path } });
const counting: FaultyHost[] = [];
/** Of anything that outlives this process: steps begun and done. */
let changes = 0;
const changed = (): void => {
  changes += 1;
};

process.exitCode = await runDaemon(process.argv.slice(2), {
  host: whenArmed(hostAs(env), armed, hostAs),
  env,
  makeParts: async (making) => {
    failCommits(making.store);
    const parts = await makeParts(making);
    return env['HUTCH_TEST_DEAF_GUEST'] === undefined ? parts : { ...parts, backends: parts.backends.map(deafened) };
  },
});
for (const { calls } of counting)
  writeFileSync(env['HUTCH_TEST_COUNT_REPORT'] ?? '/dev/stderr', calls.map((call) => `${describeCall(call)}\n`).join(''));
process.exit();

/** The door to the system as the environment, or the file of HUTCH_TEST_ARMED, wants it. */
function hostAs(told: Told): Host {
  const watched = told['HUTCH_TEST_POINTS'];
  if (watched !== undefined) return watchedHost(watched);
  const verb = told['HUTCH_TEST_COUNT'];
  if (verb === undefined) return hostWithFault(real, told['HUTCH_TEST_FAULT'], report);
  const host = countCalls(real, { only: { verb } });
  counting.push(host);
  return host;
}

/** Writes down each point at which something is begun, done, committed or sent that was not at the point before. */
function watchedHost(verb: string): Host {
  let known = -1;
  const { write } = Socket.prototype;
  Socket.prototype.write = function (...all: unknown[]) {
    changed();
    return Reflect.apply(write, this, all) as boolean;
  };
  return watchCalls(
    real,
    { only: { verb } },
    {
      point: (when, { n }) => {
        if (changes !== known) appendFileSync(report ?? '/dev/stderr', `die-${when}:${n}:${verb}\n`);
        known = changes;
      },
      changes: changed,
    },
  );
}

/** The services hold this very store, so its two writing methods are replaced. */
function failCommits(store: Store): void {
  const untouched = { commit: store.commit.bind(store), claim: store.claim.bind(store) } as Store;
  const faultyAs = (told: Told): Store =>
    storeWithFault(untouched, told['HUTCH_TEST_STORE_FAULT'], (commit) => {
      if (report !== undefined) appendFileSync(report, `${JSON.stringify(commit)}\n`);
    });
  const faulty = whenArmed(faultyAs(env), armed, faultyAs);
  const counted = <All extends unknown[], T>(call: (...all: All) => Promise<T>) => {
    return async (...all: All): Promise<T> => {
      changed();
      return await call(...all).finally(changed);
    };
  };
  Object.assign(store, { commit: counted(faulty.commit), claim: counted(faulty.claim) });
}

/** As when the daemon dies with a frame in its hands. */
function deafened(backend: Backend): Backend {
  const streams = new Map<string, Duplex>();
  return {
    ...backend,
    async dialAgent(op, plan) {
      const stream = await backend.dialAgent(op, plan);
      streams.set(plan.id, stream);
      return stream;
    },
    async linkUp(op, plan) {
      await backend.linkUp(op, plan);
      const stream = streams.get(plan.id);
      if (stream !== undefined) stream.write = () => true;
    },
  };
}

/** What is there already stays. On another file system: copies. */
function linkTree(from: string, to: string): void {
  mkdirSync(to, { recursive: true, mode: 0o755 });
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const [source, target] = [join(from, entry.name), join(to, entry.name)];
    if (entry.isDirectory()) linkTree(source, target);
    else if (!entry.name.startsWith('.')) link(source, target);
  }
}

function link(source: string, target: string): void {
  try {
    linkSync(source, target);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EXDEV') copyFileSync(source, target);
    else if (code !== 'EEXIST') throw error;
  }
}
