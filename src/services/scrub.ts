// Scrub hooks: executables in a sandbox that take out what nobody else is to have, before it is written down for others.
import type { Sandbox } from '../domain/sandbox.ts';
import { exitCode } from '../guest/exit-code.ts';
import type { Operation } from '../host/operation.ts';
import { OWN_PROCESS } from './bring-up.ts';
import type { Run } from './run.ts';

export const SCRUB_HOOKS = '/etc/hutch/scrub.d';
export const SCRUB_MS = 10 * 60_000;
const SAID_CHARS_MAX = 1_000;

/** In the order of their names; the first that fails is the last. */
const SCRIPT = `
for hook in ${SCRUB_HOOKS}/*; do
  [ -f "$hook" ] && [ -x "$hook" ] || continue
  echo "$hook"
  "$hook" < /dev/null || { code=$?; echo "$hook: exit code $code"; exit "$code"; }
done
`;
export const SCRUB: readonly string[] = ['sh', '-c', SCRIPT];

/** In a sandbox that goes on without what they have taken out. @throws HutchError `failed_precondition` with what a hook said last. */
export async function scrubSandbox(op: Operation, { state, spec: { name } }: Pick<Sandbox, 'state' | 'spec'>, run: Run): Promise<void> {
  if (state !== 'running')
    throw op.error('failed_precondition', `the scrub hooks run in the sandbox, and ${name} is ${state}`, {
      hint: `let it run: hutch ${state === 'paused' || state === 'suspended' ? 'resume' : 'start'} ${name}; or leave out --scrub`,
    });
  op.progress({ step: 'scrubbing' });
  using limited = op.within(SCRUB_MS, 'the scrub hooks');
  const id = `${OWN_PROCESS}scrub-${op.id}`;
  using process = await run.link.start(limited, { id, argv: [...SCRUB], user: 'root', stdin: 'null', whenUnread: 'drop' });
  let said = '';
  for await (const item of process.items(limited)) {
    if (item.type === 'output') said = `${said}${new TextDecoder().decode(item.bytes)}`.slice(-SAID_CHARS_MAX);
    if (item.type !== 'exit') continue;
    if (exitCode(item.exit) === 0) return;
    const words = said.trim().split('\n').slice(-2).join(' | ');
    throw op.error('failed_precondition', `the scrub hooks of ${name} in ${SCRUB_HOOKS} failed, so no snapshot was taken: ${words}`, {
      hint: 'mend the hook, or leave out --scrub',
    });
  }
}
