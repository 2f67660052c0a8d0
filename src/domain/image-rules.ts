// By what rule a sandbox has what its image says about processes: for whoever inspects it.
import { type ImageConfig, ownCommandOf, stopSignalOf } from './image.ts';
import type { SandboxSpec } from './sandbox.ts';

/** Whose word holds: the image's, that of who made the sandbox, both together, what holds where nobody says anything, or nobody's. */
export const RULE_SOURCES = ['image', 'request', 'both', 'default', 'nobody'] as const;

export type ImageRule = { readonly from: (typeof RULE_SOURCES)[number]; readonly rule: string };

export type ImageRules = { readonly [K in 'main' | 'env' | 'user' | 'workdir' | 'stopSignal' | 'exposedPorts']: ImageRule };

/** The same on every backend. */
export function imageRules(config: ImageConfig, spec: Pick<SandboxSpec, 'main' | 'env' | 'user' | 'workdir'>): ImageRules {
  return {
    main: mainRule(config, spec.main),
    env: envRule(config, spec.env),
    user: either(config.user, spec.user, {
      image: 'USER of the image',
      request: 'the user that was asked for, and not USER',
      nobody: 'root',
    }),
    workdir: either(config.workdir, spec.workdir, {
      image: 'WORKDIR of the image',
      request: 'the directory that was asked for, and not WORKDIR',
      nobody: 'the home of the user',
    }),
    stopSignal: stopRule(config),
    exposedPorts: { from: 'nobody', rule: 'EXPOSE opens nothing: every port is reached by hutch forward, and published by -p' },
  };
}

function mainRule(config: ImageConfig, main: SandboxSpec['main']): ImageRule {
  if (main === null) return { from: 'nobody', rule: 'no main process was asked for: ENTRYPOINT and CMD are not run' };
  const own = ownCommandOf(config);
  const isOwn = own.length === main.argv.length && own.every((word, at) => word === main.argv[at]);
  return isOwn
    ? { from: 'image', rule: 'ENTRYPOINT, then CMD, as no command was given' }
    : { from: 'request', rule: 'the command that was given, as it is: ENTRYPOINT is not put before it, and CMD not after' };
}

function envRule({ env: said }: ImageConfig, asked: SandboxSpec['env']): ImageRule {
  const [bySaid, byAsked] = [Object.keys(said).length > 0, Object.keys(asked).length > 0];
  if (!byAsked)
    return bySaid ? { from: 'image', rule: 'ENV of the image' } : { from: 'nobody', rule: 'neither the image nor anybody else sets one' };
  if (!bySaid) return { from: 'request', rule: 'what was asked for; the image has no ENV' };
  const over = Object.keys(asked).filter((name) => name in said);
  const which = over.length === 0 ? 'none of them twice' : `what was asked for holds of ${over.join(', ')}`;
  return { from: 'both', rule: `ENV of the image and what was asked for, ${which}` };
}

function either(said: string | null, asked: string | null, words: Readonly<Record<'image' | 'request' | 'nobody', string>>): ImageRule {
  if (asked !== null) return { from: 'request', rule: words.request };
  return said === null ? { from: 'default', rule: words.nobody } : { from: 'image', rule: words.image };
}

function stopRule(config: ImageConfig): ImageRule {
  const when = 'when it is asked to stop; SIGKILL after the grace';
  if (config.stopSignal === null) return { from: 'default', rule: `SIGTERM, as the image has no STOPSIGNAL, to every process ${when}` };
  const name = stopSignalOf(config);
  const isHeeded = name !== 'TERM' || /^(SIG)?TERM$|^15$/i.test(config.stopSignal.trim());
  return isHeeded
    ? { from: 'image', rule: `STOPSIGNAL of the image, to every process ${when}` }
    : { from: 'default', rule: `SIGTERM, as ${config.stopSignal} of the image is no signal that can be sent, to every process ${when}` };
}
