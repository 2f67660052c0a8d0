// What is proven in the lab. Each scenario prints "lab: ok NAME" or "lab: FAILED NAME", and leaves
// the outer VM as it found it: they run in order on one machine.
import { command, down, livingPid, powerCycle, up } from './machine.ts';

type Result = { readonly code: number; readonly out: string };
/** `long`: only with `--long`. */
type Scenario = { readonly name: string; readonly long?: true; readonly run: () => Promise<void> };

/** Everything here is software emulation inside software emulation: a command that takes longer than this hangs. */
const COMMAND_MS_MAX = 420_000;

async function sh(script: string, user = 'root'): Promise<Result> {
  let out = '';
  const take = (_fd: 1 | 2, chunk: Buffer) => {
    out += chunk.toString('utf8');
  };
  const hung = new Promise<number>((resolve) => setTimeout(resolve, COMMAND_MS_MAX, 124).unref());
  const code = await Promise.race([command({ argv: ['bash', '-c', `set -o pipefail; cd /hutch; ${script}`], user, onOutput: take }), hung]);
  return { code, out };
}

/** Runs a script that must end well; returns what it printed. */
async function must(script: string, user?: string): Promise<string> {
  const result = await sh(script, user);
  if (result.code !== 0) throw new Error(`$ ${script}\n${result.out.slice(-4_000)}\nended with ${result.code}`);
  return result.out;
}

function expect(condition: boolean, what: string, output: string): void {
  if (!condition) throw new Error(`not so: ${what}. The output was:\n${output.slice(-4_000)}`);
}

/** A Hutch of its own in `home`, with the kernel and image that were prepared outside. */
const seeded = (home: string): string =>
  `mkdir -p ${home}/data && chmod 711 ${home} && cp -a --reflink=auto .tools/data/{images,kernels,initramfs} ${home}/data/`;
const HOME = 'export HUTCH_HOME=/data/h HUTCH_DAEMON_LISTEN=off';
/** Sandboxes, daemon and data: all gone. */
const emptied = (home: string): string =>
  `ids=$(./hutch ls -q); [ -z "$ids" ] || ./hutch rm -f $ids; ./hutch doctor --leaks; ./hutch daemon stop; rm -rf ${home}`;

/** A file system on a device that can be told to lose every write from now on. */
const FLAKY = `
truncate -s 3G /var/flaky.img && loop=$(losetup --find --show /var/flaky.img) && sectors=$(blockdev --getsz $loop)
dmsetup create flaky --table "0 $sectors flakey $loop 0 3600 0"
mkfs.ext4 -q /dev/mapper/flaky && mkdir -p /flaky && mount /dev/mapper/flaky /flaky && chmod 755 /flaky`;
const LOSE_WRITES = `
loop=$(losetup --associated /var/flaky.img --noheadings --output NAME | tr -d ' ') && sectors=$(blockdev --getsz $loop)
dmsetup suspend --noflush --nolockfs flaky && dmsetup load flaky --table "0 $sectors flakey $loop 0 0 3600 1 drop_writes" && dmsetup resume flaky`;
const KEEP_WRITES = `
loop=$(losetup --associated /var/flaky.img --noheadings --output NAME | tr -d ' ') && sectors=$(blockdev --getsz $loop)
dmsetup suspend --noflush --nolockfs flaky && dmsetup load flaky --table "0 $sectors flakey $loop 0 3600 0" && dmsetup resume flaky`;
const UNFLAKY = 'umount /flaky; dmsetup remove flaky; losetup --detach-all; rm -f /var/flaky.img';

const scenarios: readonly Scenario[] = [
  {
    name: 'the outer VM has /dev/kvm, vsock, cgroup v2 and XFS with reflink',
    run: async () => {
      await must('test -c /dev/kvm && test -c /dev/vhost-vsock && test -f /sys/fs/cgroup/cgroup.controllers');
      await must('echo x > /data/a && cp --reflink=always /data/a /data/b && rm /data/a /data/b');
    },
  },
  {
    name: 'the probe finds that KVM works, and hutch run uses it',
    run: async () => {
      await must(seeded('/data/h'));
      const doctor = await must(`${HOME}; ./hutch doctor --json`);
      expect(/hardware virtualization/.test(doctor) && !/software emulation/.test(doctor), 'doctor says that guests run under KVM', doctor);
      expect(/"reflink","status":"ok"/.test(doctor.replaceAll(' ', '')), 'doctor says that disks are cloned by reference', doctor);
      const ran = await must(`${HOME}; ./hutch run --rm -- dmesg`);
      expect(/Hypervisor detected: KVM/.test(ran), 'the guest’s kernel finds itself under KVM', ran);
    },
  },
  {
    name: 'a sandbox is restored, used, paused, stopped, started and deleted under KVM',
    run: async () => {
      await must(`${HOME}; ./hutch create --name life && ./hutch exec life -- sh -c 'echo kept > /root/file'`);
      await must(`${HOME}; ./hutch pause life && ./hutch resume life && ./hutch exec life -- true`);
      await must(`${HOME}; ./hutch stop life && ./hutch start life`);
      const kept = await must(`${HOME}; ./hutch exec life -- cat /root/file`);
      expect(kept === 'kept\n', 'the disk outlives a stop', kept);
      const input = await must(
        `${HOME}; head -c 5000000 /dev/zero | ./hutch exec life -- sha256sum; head -c 5000000 /dev/zero | sha256sum`,
      );
      expect(new Set(input.trim().split('\n')).size === 1, 'input arrives unchanged', input);
      await must(`${HOME}; ./hutch rm -f life && ./hutch ledger verify`);
    },
  },
  {
    name: 'after a power failure sandboxes are stopped, their disks are whole, and they start again',
    run: async () => {
      await must(`${HOME}; ./hutch create --name night && ./hutch exec night -- sh -c 'echo kept > /root/file; sync'`);
      await powerCycle();
      const after = await must(`${HOME}; ./hutch inspect night --json`);
      expect(/"state":\s*"stopped"/.test(after) && /host-reboot/.test(after), 'it is stopped, because of the reboot', after);
      const kept = await must(`${HOME}; ./hutch start night && ./hutch exec night -- cat /root/file`);
      expect(kept.endsWith('kept\n'), 'what was synced is there', kept);
      await must(`${HOME}; ./hutch ledger verify; ${emptied('/data/h')}`);
    },
  },
  {
    name: 'a disk that loses every write at once leaves a store that opens, and sandboxes that are honestly stopped',
    long: true,
    run: async () => {
      const home = 'export HUTCH_HOME=/flaky/h HUTCH_DAEMON_LISTEN=off';
      try {
        await must(`${FLAKY}; ${seeded('/flaky/h')}`);
        await must(
          `${home}; ./hutch create --name before && ./hutch run -d --name busy -- sh -c 'while :; do date >> /root/log; sync; done'`,
        );
        await must(
          `${LOSE_WRITES}; ${home}; ./hutch create --name lost; pkill -KILL -f '[d]ist/hutchd.mjs'; pkill -KILL hutch-shim; pkill -KILL qemu-system; sleep 1; rm -rf /flaky/h/run; umount /flaky`,
        );
        await must(`${KEEP_WRITES}; mount /dev/mapper/flaky /flaky`);
        const list = await must(`${home}; ./hutch ls --all --json; ./hutch ledger verify`);
        for (const name of ['before', 'busy']) {
          const shown = await must(`${home}; ./hutch inspect ${name} --json`);
          expect(
            /"state":\s*"stopped"/.test(shown) && /"openComputeSinceMs":\s*null/.test(shown),
            `${name} is stopped, and nothing is billed on`,
            shown,
          );
        }
        expect(/unbroken/.test(list), 'the ledger is whole', list);
        await must(`${home}; ./hutch start before && ./hutch exec before -- true; ${emptied('/flaky/h')}`);
      } finally {
        await sh(`pkill -KILL qemu-system; ${UNFLAKY}`);
      }
    },
  },
  {
    name: 'a user without privileges gets sandboxes under KVM, and leaves nothing',
    run: async () => {
      await must('./hutch version'); // builds what the checkout's owner alone may write
      await must('mkdir -p ~/.local/share/hutch && cp -a .tools/data/{images,kernels,initramfs} ~/.local/share/hutch/', 'dev');
      const ran = await must(
        'export HUTCH_DAEMON_LISTEN=off; ./hutch run --rm -- sh -c "id -u; dmesg | grep Hypervisor" 2>/dev/null',
        'dev',
      );
      expect(/^0\n.*KVM/.test(ran), 'root in the guest, under KVM', ran);
      const doctor = await must('export HUTCH_DAEMON_LISTEN=off; ./hutch doctor --json', 'dev');
      expect(/works: none, allow, allow-lan/.test(doctor), 'they have a network, without root', doctor);
      // In the lab there is no internet, but there is the host: a server on its address, which is not reached.
      const reached = await must(
        `address=$(hostname -I | cut -d' ' -f1); python3 -m http.server 4999 >/dev/null 2>&1 & server=$!
        export HUTCH_DAEMON_LISTEN=off; sleep 2; curl -s -o /dev/null -m 20 http://$address:4999 && echo here
        ./hutch run --rm --allow-lan -- sh -c 'ip -br address; curl -s -m 20 http://'$address':4999; echo $?'; kill $server`,
        'dev',
      );
      expect(/^here\n.*192\.0\.0\.2\/29.*\n7\n$/s.test(reached), 'a network, but no way to the host', reached);
      const leaks = await must(
        'export HUTCH_DAEMON_LISTEN=off; ./hutch doctor --leaks; ./hutch daemon stop; pgrep -u dev -l "qemu|hutch|passt" || echo none',
        'dev',
      );
      expect(/none\n$/.test(leaks), 'no process is left', leaks);
      await must('rm -rf ~/.local/share/hutch ~/.local/state/hutch', 'dev');
    },
  },
  {
    name: 'the systemd unit starts the daemon, and restarting it does not touch sandboxes',
    long: true,
    run: async () => {
      await must(seeded('/var/lib/hutch').replaceAll('/var/lib/hutch/data', '/var/lib/hutch'));
      await must(
        `sed "s,@ROOT@,$PWD,g; s,@NODE@,$(cat .tools/node-path),g" packaging/systemd/hutchd.service > /etc/systemd/system/hutchd.service && systemctl daemon-reload && systemctl enable --now hutchd`,
      );
      await must(
        'for i in $(seq 120); do ./hutch daemon status >/dev/null 2>&1 && break; sleep 0.5; done; ./hutch create --name kept && ./hutch exec kept -- sh -c "echo here > /dev/shm/memory"',
      );
      await must(
        'systemctl restart hutchd && systemctl kill --kill-whom=main --signal=KILL hutchd; for i in $(seq 120); do ./hutch daemon status >/dev/null 2>&1 && break; sleep 0.5; done',
      );
      const memory = await must('./hutch exec kept -- cat /dev/shm/memory');
      expect(memory === 'here\n', 'its memory is what it was', memory);
      await must(
        './hutch rm -f kept && systemctl disable --now hutchd && rm -r /etc/systemd/system/hutchd.service /var/lib/hutch && systemctl daemon-reload',
      );
      const left = await must('pgrep -l "qemu|hutch|passt" || echo none');
      expect(left === 'none\n', 'no process is left', left);
    },
  },
];

export async function runLabTests(options: { readonly long: boolean; readonly filter: string }): Promise<boolean> {
  const wasUp = livingPid() !== null;
  await up();
  let ok = true;
  try {
    const wanted = scenarios.filter(({ name, long }) => name.includes(options.filter) && (options.long || long !== true));
    for (const scenario of wanted) {
      const started = performance.now();
      try {
        await scenario.run();
        console.log(`lab: ok ${scenario.name} (${Math.round((performance.now() - started) / 1000)} s)`);
      } catch (error) {
        ok = false;
        console.log(`lab: FAILED ${scenario.name}\n${error instanceof Error ? error.message : String(error)}`);
      }
    }
  } finally {
    if (!wasUp) down();
  }
  return ok;
}
