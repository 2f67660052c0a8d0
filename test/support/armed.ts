// A door whose fault is told while the daemon runs: a test makes what the operation needs, writes the file, and strikes. The daemon
// need not be started anew for each fault.
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';

/** `real` until the file is there; from then on what `arm` makes of what the file says. */
export function whenArmed<T extends object>(real: T, path: string | undefined, arm: (told: Readonly<Record<string, string>>) => T): T {
  if (path === undefined) return real;
  let door: T | undefined;
  return new Proxy(real, {
    get(target, name) {
      const member: unknown = Reflect.get(target, name, target);
      if (typeof member !== 'function') return member;
      return (...all: unknown[]): unknown => {
        if (door === undefined && existsSync(path)) door = arm(JSON.parse(readFileSync(path, 'utf8')) as Record<string, string>);
        const now = door ?? target;
        return Reflect.apply(Reflect.get(now, name, now) as (...args: unknown[]) => unknown, now, all);
      };
    },
  });
}

/** In one step: a daemon that looks meanwhile sees all of it or nothing. */
export function armWith(path: string, told: Readonly<Record<string, string>>): void {
  writeFileSync(`${path}.new`, JSON.stringify(told));
  renameSync(`${path}.new`, path);
}
