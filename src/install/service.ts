// What keeps the daemon running: systemd, or nobody, where the command line starts it when it is needed. It starts and stops
// nothing but the unit of this installation, and leaves sandboxes alone.
import type { Environment } from '../config/places.ts';
import type { HutchError } from '../domain/errors.ts';
import type { Host, RunResult } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { at, type Layout, UNIT } from './layout.ts';

export type UnitState = {
  readonly name: string;
  /** systemd's word: `active`, `activating`, `inactive`, `failed`. */
  readonly active: string;
  readonly sub: string;
  /** Whether it is started when the machine, or its user's session, begins. */
  readonly enabled: boolean;
  readonly pid: number | null;
  /** How often systemd has started it again since it was started. */
  readonly restarts: number;
};

export type Service = {
  readonly kind: 'systemd' | 'none';
  /** Null where no unit keeps it. */
  state(op: Operation): Promise<UnitState | null>;
  /** Tells systemd of a unit that is new, and lets it start with the machine. */
  enable(op: Operation): Promise<void>;
  start(op: Operation): Promise<void>;
  stop(op: Operation): Promise<void>;
  /** Before its file goes. */
  disable(op: Operation): Promise<void>;
  /** After its file has changed or gone. */
  reload(op: Operation): Promise<void>;
};

const SYSTEMCTL_MS = 120_000;

export type ServiceNeeds = { readonly host: Host; readonly layout: Layout; readonly env: Environment };

/** @throws HutchError `failed_precondition` where systemd is wanted and is not to be had, with what to do. */
export async function systemdService(op: Operation, needs: ServiceNeeds): Promise<Service> {
  const { host, layout } = needs;
  const without = 'or install without a unit, the command then starts the daemon when it is needed: hutch system install --no-service';
  if ((await host.which(op, 'systemctl')) === null || (await host.stat(op, '/run/systemd/system')) === null)
    throw op.error(
      'failed_precondition',
      'systemd does not run on this machine (no systemctl, or no /run/systemd/system), and the unit needs it',
      {
        hint: `run it where systemd is the init, ${without}`,
      },
    );
  const ask = await asker(op, needs);
  const asked = await ask(op, ['show', '--property', 'Version', '--value']);
  if (asked.exitCode !== 0) throw noManager(op, layout, says(asked), without);
  return {
    kind: 'systemd',
    state: async (asking) => await unitState(asking, ask),
    async enable(asking) {
      await must(asking, ask, ['daemon-reload']);
      await must(asking, ask, ['enable', UNIT]);
    },
    async start(asking) {
      // Failures of before do not count.
      await ask(asking, ['reset-failed', UNIT]);
      await must(asking, ask, ['start', UNIT]);
    },
    stop: async (asking) => await must(asking, ask, ['stop', UNIT]),
    async disable(asking) {
      await ask(asking, ['disable', '--now', UNIT]);
      await ask(asking, ['reset-failed', UNIT]);
    },
    reload: async (asking) => await must(asking, ask, ['daemon-reload']),
  };
}

/** `start` and `stop` are commands of the release in use. */
export function noService({ host, layout }: ServiceNeeds, programEnv: Readonly<Record<string, string>>): Service {
  const hutch = async (op: Operation, verb: 'start' | 'stop') => {
    const command = at(layout, `${layout.current}/bin/hutch`);
    if ((await host.stat(op, command)) === null && verb === 'stop') return;
    const done = await host.run(op, [command, 'daemon', verb], { env: programEnv });
    if (done.exitCode !== 0) throw op.error('unavailable', `the daemon does not ${verb}: ${says(done)}`);
  };
  const nothing = async () => {};
  return {
    kind: 'none',
    state: async () => null,
    start: async (op) => await hutch(op, 'start'),
    stop: async (op) => await hutch(op, 'stop'),
    enable: nothing,
    disable: nothing,
    reload: nothing,
  };
}

/** Another root has no daemons. */
export const NO_MACHINE: Service = {
  kind: 'none',
  state: async () => null,
  enable: async () => {},
  start: async () => {},
  stop: async () => {},
  disable: async () => {},
  reload: async () => {},
};

type Ask = (op: Operation, words: readonly string[]) => Promise<RunResult>;

async function asker(op: Operation, { host, layout, env }: ServiceNeeds): Promise<Ask> {
  if (layout.whose === 'system') return async (asking, words) => await host.run(asking, ['systemctl', '--system', ...words]);
  const runtime = env['XDG_RUNTIME_DIR'] ?? `/run/user/${host.uid}`;
  const bus = env['DBUS_SESSION_BUS_ADDRESS'];
  const has = (await host.stat(op, runtime)) !== null;
  const userEnv = { ...(has ? { XDG_RUNTIME_DIR: runtime } : {}), ...(bus === undefined ? {} : { DBUS_SESSION_BUS_ADDRESS: bus }) };
  return async (asking, words) => {
    using limited = asking.within(SYSTEMCTL_MS, `systemctl ${words[0]}`);
    return await host.run(limited, ['systemctl', '--user', ...words], { env: userEnv });
  };
}

function noManager(op: Operation, { whose }: Layout, said: string, without: string): HutchError {
  if (whose === 'system') return op.error('unavailable', `systemd does not answer: ${said}`, { hint: without });
  return op.error('failed_precondition', `this user has no service manager to ask (systemctl --user: ${said})`, {
    hint: `log in as that user (not by su), or let it live without a login, as root: loginctl enable-linger USER; ${without}`,
  });
}

async function must(op: Operation, ask: Ask, words: readonly string[]): Promise<void> {
  const done = await ask(op, words);
  if (done.exitCode !== 0)
    throw op.error('unavailable', `systemctl ${words.join(' ')} failed: ${says(done)}`, { hint: `see: systemctl status ${UNIT}` });
}

function says({ exitCode, stdout, stderr }: RunResult): string {
  const text = new TextDecoder().decode(stderr).trim() || new TextDecoder().decode(stdout).trim();
  return text.split('\n')[0] || `it ended with ${exitCode}`;
}

const PROPERTIES = ['ActiveState', 'SubState', 'UnitFileState', 'MainPID', 'NRestarts', 'LoadState'] as const;

async function unitState(op: Operation, ask: Ask): Promise<UnitState | null> {
  const { stdout } = await ask(op, ['show', UNIT, ...PROPERTIES.flatMap((name) => ['--property', name])]);
  const found = new Map(
    new TextDecoder()
      .decode(stdout)
      .split('\n')
      .map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)] as const),
  );
  if (found.get('LoadState') !== 'loaded') return null;
  const pid = Number(found.get('MainPID') ?? 0);
  return {
    name: UNIT,
    active: found.get('ActiveState') ?? 'unknown',
    sub: found.get('SubState') ?? 'unknown',
    enabled: found.get('UnitFileState') === 'enabled',
    pid: pid > 0 ? pid : null,
    restarts: Number(found.get('NRestarts') ?? 0),
  };
}

export type Linger = { isOn(op: Operation): Promise<boolean>; set(op: Operation, on: boolean): Promise<void> };

/** Whether a user's services live without a login. */
export function lingerOf({ host }: ServiceNeeds): Linger {
  const user = async (op: Operation) => new TextDecoder().decode((await host.run(op, ['id', '-un'])).stdout).trim();
  return {
    isOn: async (op) => (await host.stat(op, `/var/lib/systemd/linger/${await user(op)}`)) !== null,
    async set(op, on) {
      const done = await host.run(op, ['loginctl', on ? 'enable-linger' : 'disable-linger', await user(op)]);
      if (done.exitCode !== 0)
        throw op.error('permission_denied', `loginctl ${on ? 'enable' : 'disable'}-linger failed: ${says(done)}`, {
          hint: `as root: loginctl ${on ? 'enable' : 'disable'}-linger ${await user(op)}`,
        });
    },
  };
}
