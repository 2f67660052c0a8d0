// What is copied and what is saved, where disks share blocks and the power can fail.
import { powerCycle } from './machine.ts';
import { begun, HERE, type Scenario } from './scenarios.ts';
import { expect, show, step } from './steps.ts';

const fork: Scenario = {
  name: 'hutch fork under KVM on XFS with reflink: children have memory and disk of their parent, and share its blocks',
  long: true,
  run: async () => {
    await step(
      'a parent with 64 MiB on its disk, and something in memory',
      `${begun}; ${HERE}; ./hutch create --name tree && ./hutch exec tree -- sh -c 'head -c 64M /dev/urandom > /root/file; sync; echo here > /dev/shm/memory'`,
    );
    const used = async (when: string): Promise<number> => Number(await step(when, `sync; df --output=used -k /data | tail -n 1`));
    const before = await used('the disk before');
    const forked = await step('fork', `${HERE}; ./hutch fork tree -n 3 --name-prefix leaf --json`);
    const after = await used('the disk afterwards');
    show(`${Math.round((after - before) / 1024)} MiB more for 3 children; ${forked.replaceAll(/\\s+/g, ' ').slice(0, 160)}`);
    const seen = await step(
      'what the children have',
      `${HERE}; for n in 1 2 3; do ./hutch exec leaf-$n -- sh -c 'cat /dev/shm/memory; sha256sum < /root/file; dmesg | grep -c "Hypervisor detected: KVM"'; done; ./hutch exec tree -- sh -c 'sha256sum < /root/file'`,
    );
    const lines = seen.trim().split('\n');
    const [sum] = lines.slice(-1);
    expect(
      lines.length === 10 && [0, 3, 6].every((n) => lines[n] === 'here' && lines[n + 1] === sum && lines[n + 2] === '1'),
      'all of it',
      seen,
    );
    // Three copies of the file alone would be 192 MiB; the parent's memory, which has it too, is written down once.
    expect(after - before < 192 * 1024, 'their disks share the blocks of the parent', `${before} ${after}`);
    const apart = await step(
      'what one writes',
      `${HERE}; ./hutch exec leaf-1 -- sh -c 'echo mine > /root/file; echo mine > /dev/shm/memory; sync'; for n in leaf-2 tree; do ./hutch exec $n -- sh -c 'cat /dev/shm/memory; sha256sum < /root/file'; done`,
    );
    expect(apart === `here\n${sum}\nhere\n${sum}\n`, 'no other sees', apart);
    const left = await step(
      'rm, ledger',
      `${HERE}; ./hutch rm -f tree leaf-1 leaf-2 leaf-3 && ./hutch ledger verify && ./hutch doctor --leaks`,
    );
    expect(/unbroken/.test(left), 'the ledger is whole', left);
  },
};

/** Ends while the memory is being written. */
const SUSPENDING = `{ ./hutch suspend deep >/dev/null 2>&1 & }; for i in $(seq 4000); do ls -d /data/h/data/sandboxes/*/suspended 2>/dev/null && break; sleep 0.01; done; ./hutch ls --json | grep -o '"state": *"[a-z]*"'`;

const suspend: Scenario = {
  name: 'a power failure in the middle of a suspend leaves a sandbox that is stopped or suspended, never half of one',
  long: true,
  run: async () => {
    await step(
      'a sandbox with 64 MiB in memory, and a file',
      `${begun}; ${HERE}; ./hutch create --name deep && ./hutch exec deep -- sh -c 'head -c 64M /dev/urandom > /dev/shm/memory; sha256sum < /dev/shm/memory > /root/sum; sync'`,
    );
    show(await step('it is being suspended', `${HERE}; ${SUSPENDING}`));
    await powerCycle();
    const shown = await step('after the power failure', `${HERE}; ./hutch inspect deep --json; ./hutch why deep; ./hutch ledger verify`);
    const state = /"state":\s*"(\w+)"/.exec(shown)?.[1] ?? '';
    show(`${state}; ${/deep is [^\n]*/.exec(shown)?.[0] ?? ''}`);
    expect(
      ['stopped', 'suspended'].includes(state) && /unbroken/.test(shown),
      'it is the one or the other, and the ledger is whole',
      shown,
    );
    const again = await step(
      'it goes on, or starts',
      `${HERE}; ./hutch ${state === 'suspended' ? 'resume' : 'start'} deep && ./hutch exec deep -- sh -c 'cat /root/sum; ${state === 'suspended' ? 'sha256sum < /dev/shm/memory' : 'cat /root/sum'}'`,
    );
    const sums = again.trim().split('\n').slice(-2);
    expect(/^[0-9a-f]{64}/.test(sums[0] ?? '') && sums[0] === sums[1], 'with all that it was', again);
    const whole = await step(
      'a suspend that is left alone',
      `${HERE}; ./hutch exec deep -- sh -c 'echo here > /dev/shm/memory' && ./hutch suspend deep && ./hutch resume deep && ./hutch exec deep -- cat /dev/shm/memory`,
    );
    expect(whole.endsWith('here\n'), 'works afterwards', whole);
    await step('rm, leaks', `${HERE}; ./hutch rm -f deep && ./hutch ledger verify && ./hutch doctor --leaks`);
  },
};

export const savedScenarios: readonly Scenario[] = [fork, suspend];
