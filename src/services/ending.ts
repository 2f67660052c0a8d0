// What ended a sandbox, in the words that a person is told: by `why`, and to whoever ran a command in it.
// Pure: made from the records alone.
import type { Ended, Sandbox } from '../domain/sandbox.ts';

/** An actor in words. */
export type Who = (actor: string) => string;

type What = Pick<Ended, 'cause' | 'actor' | 'exitCode' | 'oomKilled'>;

/** As what follows "sandbox web is stopped: "; `when` as in "5 seconds ago", or empty. */
export function endingWords(backend: string, ended: What, when: string, who: Who): string {
  const at = when === '' ? '' : ` ${when}`;
  const code = ended.exitCode === null ? '' : `, exit code ${ended.exitCode}`;
  const oom = ended.oomKilled ? ' after it had run out of memory' : '';
  switch (ended.cause) {
    case 'exited':
      return `its main process ended${at}${oom}${code}`;
    case 'stopped':
      return `${who(ended.actor)} stopped it${at}${code}`;
    case 'timeout':
      return `its time was up${at}${code}`;
    case 'idle':
      return `nobody had touched it for as long as it may be left alone, so it was stopped${at}`;
    case 'crashed':
      return `${carrierOf(backend)} ended by itself${at}${oom}`;
    case 'guest-shutdown':
      return `it shut itself down from inside${at}${code}`;
    case 'host-stopped':
      return `${backend === 'docker' ? 'its Docker Engine, or somebody who uses that,' : 'somebody on this machine'} stopped ${carrierOf(backend)}${at}${oom}${code}`;
    case 'host-reboot':
      return `the host went down or was restarted under it${at === '' ? '' : `, last seen alive${at}`}`;
  }
}

/** What a sandbox of that backend runs in. */
function carrierOf(backend: string): string {
  if (backend === 'gvisor') return 'its kernel in user space';
  return backend === 'docker' ? 'its container' : 'its virtual machine';
}

/** The process on the host that its end is seen by. */
export function programOf(backend: string): string {
  if (backend === 'gvisor') return 'runsc';
  return backend === 'docker' ? 'the container' : 'VMM';
}

/** The end of one that does not run any more, as far as its row has it. */
export function endOf(sandbox: Sandbox): Ended | null {
  return sandbox.state === 'stopped' || sandbox.state === 'error' ? sandbox.ended : null;
}
