// What is proven in the lab. Each scenario leaves the outer VM as it found it, but for the daemon that has
// sandboxes under KVM in /data/h: they run in order on one machine.
import { powerCycle, reboot } from './machine.ts';
import { expect, show, step } from './steps.ts';

/** `long`: only with `--long`, or when it is asked for by name. */
export type Scenario = { readonly name: string; readonly long?: true; readonly run: () => Promise<void> };

/** A Hutch of its own in `home`, with the kernel and image that were prepared outside; on /data without a copy. */
export const seeded = (data: string): string => `mkdir -p ${data} && chmod 711 ${data} && cp -a --reflink=auto /data/seed/. ${data}/`;
/** The machine that the first scenario booted, so that no other need boot it once more. */
const withTemplate = (data: string): string =>
  `{ test ! -e /data/h/data/templates || cp -a --reflink=auto /data/h/data/templates ${data}/; }`;
export const at = (home: string): string => `export HUTCH_HOME=${home} HUTCH_DAEMON_LISTEN=off`;
export const HERE = at('/data/h');
export const begun = `test -e /data/h/data || { mkdir -p /data/h && chmod 711 /data/h && ${seeded('/data/h/data')}; }`;
/** Sandboxes, daemon and data: all gone, and nothing left that no sandbox owns. */
export const emptied = (home: string): string =>
  `ids=$(./hutch ls -q) && { [ -z "$ids" ] || ./hutch rm -f $ids; } && ./hutch doctor --leaks && ./hutch daemon stop && rm -rf ${home}`;
const NOBODY = 'pgrep -a "qemu|hutch|passt" | grep -v guest-service || echo none';

/** With an interface that leads nowhere: pasta and passt take the machine's way out, whatever lies behind it. */
export async function withWayOut<T>(run: () => Promise<T>): Promise<T> {
  await step(
    'a way out that leads nowhere',
    'ip link show out >/dev/null 2>&1 || { ip link add out type dummy && ip address add 10.0.2.15/24 dev out && ip link set out up && ip route add default via 10.0.2.2 dev out; }',
  );
  try {
    return await run();
  } finally {
    await step('the way out is put away', 'ip link delete out', { mayFail: true });
  }
}

const hardware: Scenario = {
  name: 'the outer VM has /dev/kvm, vsock, cgroup v2 and XFS with reflink',
  run: async () => {
    await step('devices and cgroups', 'test -c /dev/kvm && test -c /dev/vhost-vsock && test -f /sys/fs/cgroup/cgroup.controllers');
    await step('a clone of a file', 'echo x > /data/a && cp --reflink=always /data/a /data/b && rm /data/a /data/b');
  },
};

const probe: Scenario = {
  name: 'the probe finds that KVM works, and hutch run uses it',
  run: async () => {
    await step('a new Hutch', begun);
    const doctor = await step('hutch doctor', `${HERE}; ./hutch doctor --json`);
    expect(/hardware virtualization/.test(doctor) && !/software emulation/.test(doctor), 'doctor says that guests run under KVM', doctor);
    expect(/"reflink","status":"ok"/.test(doctor.replaceAll(' ', '')), 'doctor says that disks are cloned by reference', doctor);
    const ran = await step(
      'the first hutch run, which boots the template',
      `${HERE}; ./hutch run --rm -- sh -c 'dmesg | grep -i hypervisor; uname -r'`,
    );
    expect(/Hypervisor detected: KVM/.test(ran), 'the guest’s kernel finds itself under KVM', ran);
    show(ran);
    const seen = await step(
      'the command line of its QEMU',
      `${HERE}; ./hutch run -d --name seen -- sleep 1000 >/dev/null && pgrep -a qemu-system | sed 's/ -object.*//' && ./hutch rm -f seen >/dev/null`,
    );
    expect(/-accel kvm/.test(seen) && !/-accel tcg/.test(seen), 'QEMU runs with -accel kvm', seen);
    show(seen);
    const backends = await step('hutch backends', `${HERE}; ./hutch backends --json`);
    expect(/"acceleration":\s*"kvm"/.test(backends), 'the backend says that it uses KVM', backends);
  },
};

const life: Scenario = {
  name: 'a sandbox is restored, used, paused, stopped, started, restarted and deleted under KVM',
  run: async () => {
    await step(
      'create, exec',
      `${begun}; ${HERE}; ./hutch create --name life && ./hutch exec life -- sh -c 'echo kept > /root/file; sync'`,
    );
    await step('pause, resume', `${HERE}; ./hutch pause life && ./hutch resume life && ./hutch exec life -- true`);
    await step('stop, start', `${HERE}; ./hutch stop life && ./hutch start life`);
    const kept = await step('its disk', `${HERE}; ./hutch exec life -- cat /root/file`);
    expect(kept === 'kept\n', 'the disk outlives a stop', kept);
    const boots = await step(
      'restart',
      `${HERE}; ./hutch exec life -- sh -c 'echo here > /dev/shm/memory' && ./hutch restart life && ./hutch exec life -- sh -c 'cat /root/file; ls /dev/shm'`,
    );
    expect(boots.endsWith('kept\n'), 'a restart keeps the disk and not the memory', boots);
    const sums = await step(
      '5 MB of input',
      `${HERE}; head -c 5000000 /dev/zero | ./hutch exec life -- sha256sum; head -c 5000000 /dev/zero | sha256sum`,
    );
    expect(new Set(sums.trim().split('\n')).size === 1, 'input arrives unchanged', sums);
    const gone = await step('rm, ledger', `${HERE}; ./hutch rm -f life && ./hutch ls -q && ./hutch ledger verify`);
    expect(/unbroken/.test(gone), 'the ledger is whole', gone);
    show(gone);
  },
};

const shared: Scenario = {
  name: 'a copy of a disk on XFS shares its blocks with the original',
  run: async () => {
    const script = `
import { nodeHost } from './src/host/node-host.ts';
import { testOperation } from './test/support/operation.ts';
const [from, to] = process.argv.slice(2);
console.log(await nodeHost().cloneFile(testOperation(), from, to));`;
    const clone = (from: string, to: string) => `.tools/lab-node --input-type=module-typescript - ${from} ${to} <<'END'\n${script}\nEND\n`;
    const said = await step(
      'a disk of 16 MiB of data in 256 MiB, cloned',
      `rm -rf /data/disks && mkdir /data/disks && truncate -s 256M /data/disks/disk && head -c 16M /dev/urandom | dd of=/data/disks/disk bs=1M seek=100 conv=notrunc status=none && sync
      ${clone('/data/disks/disk', '/data/disks/clone')}
      sync; cmp /data/disks/disk /data/disks/clone && filefrag -v /data/disks/clone && xfs_io -r -c 'fiemap -v' /data/disks/clone`,
    );
    expect(said.startsWith('reflink\n'), 'the copy is made by reference', said);
    const extents = said.split('\n').filter((line) => /^\s*\d+:\s+\d+\.\.\s*\d+:/.test(line));
    expect(extents.length > 0 && extents.every((line) => line.includes('shared')), 'all its extents are shared', said);
    show(extents.join('\n'));
    const alone = await step(
      'written over, it is its own',
      `head -c 1M /dev/zero | dd of=/data/disks/clone bs=1M seek=100 conv=notrunc,fsync status=none; cmp -s /data/disks/disk /data/disks/clone; echo $?; rm -r /data/disks`,
    );
    expect(alone === '1\n', 'a write to the copy leaves the original', alone);
  },
};

const installs: Scenario = {
  name: 'a user with sudo installs what is missing, and runs a sandbox under KVM',
  long: true,
  run: async () => {
    const env = 'export XDG_DATA_HOME=/data/ops HUTCH_DAEMON_LISTEN=off';
    try {
      await step('passt is taken away', 'dpkg --purge passt >/dev/null && ! command -v passt');
      await step(
        'their data',
        `mkdir -p /data/ops/hutch && ${seeded('/data/ops/hutch')} && ${withTemplate('/data/ops/hutch')} && chown -R ops /data/ops`,
      );
      const ran = await step(
        'hutch run',
        `${env}; ./hutch run --rm -- sh -c 'id -u; dmesg | grep -i hypervisor' 2>/tmp/said; code=$?; cat /tmp/said >&2; grep -E 'Installing|passt' /tmp/said; [ $code = 0 ]`,
        { user: 'ops' },
      );
      expect(/^0\n.*KVM/.test(ran), 'root in the guest, under KVM', ran);
      expect(/takes root \(sudo\)/.test(ran) && /passt: network for a sandbox/.test(ran), 'it says what it installs, as whom and why', ran);
      show(ran);
      const left = await step(
        'afterwards',
        `${env}; command -v passt && ./hutch doctor --leaks && ./hutch daemon stop && { pgrep -u ops -a "qemu|hutch|passt" || echo none; } && rm -rf /data/ops/hutch /tmp/said`,
        { user: 'ops' },
      );
      expect(/none\n$/.test(left), 'no process is left', left);
    } finally {
      await step('passt is there for the others', 'command -v passt || apt-get -qq install passt', { mayFail: true });
    }
  },
};

const unprivileged: Scenario = {
  name: 'a user without privileges gets sandboxes under KVM, and leaves nothing',
  long: true,
  run: () =>
    withWayOut(async () => {
      const env = 'export XDG_DATA_HOME=/data/dev HUTCH_DAEMON_LISTEN=off';
      await step('their data', `mkdir -p /data/dev && chown dev /data/dev`);
      await step('the seed', seeded('/data/dev/hutch'), { user: 'dev' });
      const ran = await step(
        'the first hutch run, which boots their own template',
        `${env}; ./hutch run --rm -- sh -c 'id -u; dmesg | grep -i hypervisor'`,
        { user: 'dev' },
      );
      expect(/^0\n.*KVM/.test(ran), 'root in the guest, under KVM', ran);
      const doctor = await step('hutch doctor', `${env}; ./hutch doctor --json`, { user: 'dev' });
      expect(/works: none, allow, allow-lan/.test(doctor), 'they have a network, without root', doctor);
      // In the lab there is no internet, but there is the host: a server on its address, which is not reached.
      const reached = await step(
        'a network, but no way to the host',
        `address=$(hostname -I | cut -d' ' -f1); python3 -m http.server 4999 >/dev/null 2>&1 & server=$!
        ${env}; for i in $(seq 60); do curl -s -o /dev/null http://$address:4999 && break; sleep 0.5; done; curl -s -o /dev/null -m 20 http://$address:4999 && echo here
          ./hutch run --rm --allow-lan -- sh -c 'ip -br address; curl -s -m 20 http://'$address':4999; echo $?'; ps -u dev -o comm= | sort -u | tr '\\n' ' ' >&2; echo >&2; kill $server`,
        { user: 'dev' },
      );
      // 7: refused; 28: Debian 12's passt says so with a reset that a guest's kernel does not take for an answer.
      expect(/^here\n.*192\.0\.0\.2\/29.*\n(7|28)\n$/s.test(reached), 'a network, but no way to the host', reached);
      show(reached);
      const leaks = await step(
        'afterwards',
        `${env}; ./hutch doctor --leaks && ./hutch daemon stop; pgrep -u dev -a "qemu|hutch|passt|pasta" || echo none; rm -rf /data/dev/hutch`,
        { user: 'dev' },
      );
      expect(/none\n$/.test(leaks), 'no process is left', leaks);
    }),
};

const UNIT = 'var-lib-hutch';
const daemonUp = 'for i in $(seq 240); do ./hutch daemon status >/dev/null 2>&1 && break; sleep 0.5; done; ./hutch daemon status';

const unit: Scenario = {
  name: 'the systemd unit keeps the daemon: neither its restart nor its death touches sandboxes, and a reboot stops them',
  long: true,
  run: async () => {
    await step(
      'a Hutch in the usual places',
      `${seeded(`/data/${UNIT}`)} && ${withTemplate(`/data/${UNIT}`)} && mkdir -p /var/lib/hutch && echo '/data/${UNIT} /var/lib/hutch none bind 0 0' >> /etc/fstab && mount /var/lib/hutch`,
    );
    await step('the unit, as docs/service.md says', `./hutch system install >/dev/null && ${daemonUp}`);
    await step(
      'a sandbox',
      './hutch create --name again --restart always && ./hutch create --name kept && ./hutch exec kept -- sh -c "echo here > /dev/shm/memory; echo disk > /root/file; sync"',
    );
    const pids = async (when: string) =>
      await step(when, `systemctl show -p MainPID --value hutchd; pgrep qemu-system | tail -n 1; ./hutch exec kept -- cat /dev/shm/memory`);
    const [first, vm, memory] = (await pids('before')).split('\n');
    await step('systemctl restart', `systemctl restart hutchd && ${daemonUp}`);
    const [second, vmAfterRestart, memoryAfterRestart] = (await pids('after the restart')).split('\n');
    expect(second !== first, 'it is another daemon', `${first} ${second}`);
    expect(vmAfterRestart === vm && memoryAfterRestart === memory && memory === 'here', 'and the same machine', `${vm} ${vmAfterRestart}`);
    await step(
      'kill -9 of the daemon',
      `kill -9 $(systemctl show -p MainPID --value hutchd); for i in $(seq 240); do [ "$(systemctl show -p NRestarts --value hutchd)" = 1 ] && break; sleep 0.5; done; ${daemonUp}`,
    );
    const [third, vmAfterKill, memoryAfterKill] = (await pids('after the kill')).split('\n');
    expect(third !== second, 'systemd started another daemon', `${second} ${third}`);
    expect(vmAfterKill === vm && memoryAfterKill === memory, 'and the machine is the same', `${vm} ${vmAfterKill}`);
    show(`daemon ${first}, ${second}, ${third}; QEMU ${vm}, ${vmAfterRestart}, ${vmAfterKill}`);
    await reboot();
    const why = await step('after the reboot', `${daemonUp} >/dev/null; ./hutch inspect kept --json; ./hutch why kept`);
    expect(/"state":\s*"stopped"/.test(why) && /host-reboot/.test(why), 'it is stopped, because of the reboot', why);
    show(why.slice(why.indexOf('kept is stopped')));
    const again = await step(
      'the one with --restart always',
      'for i in $(seq 240); do ./hutch ls | grep -q "again .*running" && break; sleep 0.5; done; ./hutch ls',
    );
    expect(/again +running/.test(again), 'it runs again, without a word of anybody', again);
    show(again);
    const kept = await step('started again', './hutch start kept && ./hutch exec kept -- cat /root/file');
    expect(kept.endsWith('disk\n'), 'its disk is whole', kept);
    const left = await step(
      'afterwards',
      `./hutch rm -f kept again && ./hutch ledger verify && ./hutch doctor --leaks && ./hutch system uninstall && umount /var/lib/hutch && sed -i /${UNIT}/d /etc/fstab && rm -r /var/lib/hutch /var/log/hutch /data/${UNIT}; ${NOBODY}`,
    );
    expect(/none\n$/.test(left), 'no process is left', left);
  },
};

const FLAKY = at('/flaky/h');
const table = (feature: string): string => `"0 $(blockdev --getsz /dev/vdd) flakey /dev/vdd 0 ${feature}"`;

const power: Scenario = {
  name: 'after a power failure, also on a disk that lost every write, stores open and sandboxes are honestly stopped',
  long: true,
  run: async () => {
    try {
      await step(
        'a sandbox on an honest disk',
        `${begun}; ${HERE}; ./hutch create --name night && ./hutch exec night -- sh -c 'echo kept > /root/file; sync'`,
      );
      await step(
        'a Hutch on dm-flakey',
        `dmsetup create flaky --table ${table('3600 0')} && mkfs.xfs -q -f /dev/mapper/flaky && mkdir -p /flaky && mount /dev/mapper/flaky /flaky && mkdir /flaky/h && chmod 711 /flaky /flaky/h && ${seeded('/flaky/h/data')} && ${withTemplate('/flaky/h/data')} && sync`,
      );
      await step(
        'two sandboxes on it, one that writes',
        `${FLAKY}; ./hutch create --name before && ./hutch run -d --name busy -- sh -c 'while :; do date >> /root/log; sync; sleep 0.2; done'`,
      );
      await step(
        'from now on that disk loses every write',
        `dmsetup suspend --noflush --nolockfs flaky && dmsetup load flaky --table ${table('0 3600 1 drop_writes')} && dmsetup resume flaky && dmsetup table flaky`,
      );
      await step('what is made now is never there', `${FLAKY}; ./hutch create --name lost`, { mayFail: true });
      await powerCycle();
      const night = await step('the honest disk', `${HERE}; ./hutch inspect night --json`);
      expect(/"state":\s*"stopped"/.test(night) && /host-reboot/.test(night), 'it is stopped, because of the reboot', night);
      const kept = await step('it starts again', `${HERE}; ./hutch start night && ./hutch exec night -- cat /root/file`);
      expect(kept.endsWith('kept\n'), 'what was synced is there', kept);
      await step('its ledger', `${HERE}; ./hutch ledger verify && ./hutch rm -f night && ./hutch doctor --leaks`);
      const list = await step(
        'the disk that lost writes',
        `mkdir -p /flaky && mount /dev/vdd /flaky && ${FLAKY}; ./hutch ls; ./hutch ledger verify`,
      );
      expect(/unbroken/.test(list), 'the ledger is whole', list);
      show(list);
      for (const name of ['before', 'busy']) {
        const shown = await step(`${name} on it`, `${FLAKY}; ./hutch inspect ${name} --json`);
        expect(
          /"state":\s*"stopped"/.test(shown) && /"openComputeSinceMs":\s*null/.test(shown) && /host-reboot/.test(shown),
          `${name} is stopped, and nothing is billed on`,
          shown,
        );
      }
      const lost = await step('what was lost', `${FLAKY}; ./hutch inspect lost; echo $?`);
      expect(lost.endsWith('3\n'), 'what never reached the disk is not found', lost);
      await step(
        'both start',
        `${FLAKY}; ./hutch start before && ./hutch exec before -- true && ./hutch start busy && ./hutch rm -f before busy`,
      );
      await step('nothing is left', `${FLAKY}; ${emptied('/flaky/h')}`);
    } finally {
      await step('the disk is put away', 'umount /flaky; dmsetup remove flaky; wipefs -qa /dev/vdd', { mayFail: true });
    }
  },
};

export const scenarios: readonly Scenario[] = [hardware, probe, life, shared, installs, unprivileged, unit, power];
/** The end of all of them. */
export const LEFT = `test ! -e /data/h || { ${HERE}; ${emptied('/data/h')}; }; ${NOBODY}`;
