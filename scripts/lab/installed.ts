// What of `hutch system` only a machine with systemd can prove: installed for the machine and for a user, upgraded while a
// sandbox lives, taken back, and gone without a trace.
import type { Scenario } from './scenarios.ts';
import { expect, show, step } from './steps.ts';

/** Every file but those of the checkout, of other disks, and of what goes on all the time; users, interfaces, rules, units. */
const MACHINE = `{ find / -xdev \\( -path /proc -o -path /sys -o -path /hutch \\) -prune -o -printf '%y %m %p %l\\n' 2>/dev/null |
  grep -vE ' /(tmp|root|var/tmp|var/log/journal|var/lib/systemd|var/lib/dpkg|var/cache|run)(/| |$)|/\\.cache|hutch-lab' | sort
  getent passwd; getent group; ip -o link | cut -d: -f2; nft list tables 2>/dev/null; systemctl list-unit-files --no-legend | cut -d' ' -f1-2 | grep -i hutchd; ls -d /run/hutch 2>/dev/null
  find /sys/fs/cgroup -maxdepth 2 -name 'hutch*' ! -name 'hutch-lab*'; ls /var/lib/systemd/linger; }`;

/** A checkout that is built, which differs from this one by what is done to its daemon. */
const copied = (dir: string, change: string): string =>
  `rm -rf ${dir} && mkdir -p ${dir}/.tools && cp -a dist docs prebuilt packaging LICENSE CHANGELOG.md README.md ${dir}/ && cp .tools/node-path ${dir}/.tools/ && rm -f ${dir}/dist/built && ${change}`;
const BROKEN = `if (process.argv[2] === "--about") console.log(JSON.stringify({ version: "0.2.0", schemaVersion: 99 })); else { const { DatabaseSync } = await import("node:sqlite"); const db = new DatabaseSync("/var/lib/hutch/hutch.db"); db.exec("PRAGMA user_version = 99"); db.close(); console.error("boom"); process.exit(1); }`;
const SEE =
  'systemctl show -p MainPID --value hutchd; pgrep qemu-system; hutch exec kept -- cat /dev/shm/memory; readlink /usr/local/lib/hutch/current';

const machine: Scenario = {
  name: 'hutch system install as root: an upgrade keeps a sandbox alive, one that does not start is taken back, and uninstall leaves nothing',
  long: true,
  run: async () => {
    await step('the machine as it is', `test -e /root/before || ${MACHINE} > /root/before; wc -l < /root/before`);
    show(await step('hutch system install', './hutch system install'));
    await step(
      'a sandbox, from the prepared kernel and image',
      `systemctl stop hutchd && cp -a /data/seed/. /var/lib/hutch/ && systemctl start hutchd && hutch create --name kept && hutch exec kept -- sh -c 'echo here > /dev/shm/memory'`,
    );
    const seen = async (when: string) => (await step(when, SEE)).trim().split('\n');
    const [daemon, vm, memory, release] = await seen('before the upgrade');
    show(
      await step(
        'an upgrade',
        `${copied('/data/newer', "echo '// newer' >> /data/newer/dist/hutchd.mjs")} && hutch system upgrade /data/newer`,
      ),
    );
    const [second, vmAfter, memoryAfter, newer] = await seen('after the upgrade');
    expect(second !== daemon && newer !== release, 'it is another daemon, of another release', `${release} ${newer}`);
    expect(vmAfter === vm && memoryAfter === memory && memory === 'here', 'and the same machine', `${vm} ${vmAfter}`);
    const failed = await step(
      'an upgrade to a release that brings the store to its schema and does not start',
      `${copied('/data/broken', `printf '%s\\n' '${BROKEN}' > /data/broken/dist/hutchd.mjs`)} && hutch system upgrade /data/broken 2>&1; echo "exit code $?"; hutch system status`,
    );
    show(failed);
    expect(/was taken back/.test(failed) && /exit code 4/.test(failed), 'it is taken back, and says so', failed);
    const [third, vmLast, memoryLast, last] = await seen('after that');
    expect(third !== second && last === newer, 'the release of before runs', `${newer} ${last}`);
    expect(vmLast === vm && memoryLast === memory, 'and the machine is the same', `${vm} ${vmLast}`);
    show(`daemon ${daemon}, ${second}, ${third}; QEMU ${vm}, ${vmAfter}, ${vmLast}`);
    const refused = await step('uninstall while it runs', 'hutch system uninstall 2>&1; echo "exit code $?"');
    expect(/sandboxes run: kept/.test(refused) && /exit code 4/.test(refused), 'it is refused', refused);
    show(await step('uninstall --force --purge', 'hutch system uninstall --force --purge'));
    const left = await step(
      'the machine afterwards',
      `${MACHINE} | diff /root/before - ; echo "differs: $?"; rm -rf /root/before /data/newer /data/broken; pgrep -a 'qemu|hutch' | grep -v guest-service || echo none`,
    );
    expect(/^differs: 0\nnone\n$/.test(left), 'it is as it was', left);
    show(left);
  },
};

const person: Scenario = {
  name: 'hutch system install as a user without privileges: a unit of their own, lingering only when asked for, and uninstall leaves nothing',
  long: true,
  run: async () => {
    const home = `find ~ -printf '%y %m %p %l\\n' | grep -v '/\\.cache' | sort`;
    const user = { user: 'dev' } as const;
    await step('the home as it is', `${home} > /tmp/home-before`, user);
    const installed = await step('hutch system install', 'export XDG_RUNTIME_DIR=/run/user/$(id -u); ./hutch system install', user);
    show(installed);
    expect(/hutchd\.service/.test(installed) && !/nft table/.test(installed), 'it names the unit, and no rules', installed);
    const status = await step(
      'status',
      'export XDG_RUNTIME_DIR=/run/user/$(id -u); ~/.local/bin/hutch system status; systemctl --user is-enabled hutchd',
      user,
    );
    expect(
      /hutchd\.service: active \(running\), starts with the machine/.test(status) && /enabled\n$/.test(status),
      'the unit runs',
      status,
    );
    show(status);
    await step('uninstall --purge', 'export XDG_RUNTIME_DIR=/run/user/$(id -u); ~/.local/bin/hutch system uninstall --purge', user);
    const left = await step(
      'the home afterwards',
      `${home} | diff /tmp/home-before -; echo "differs: $?"; rm /tmp/home-before; pgrep -u dev -a hutch || echo none`,
      user,
    );
    expect(/^differs: 0\nnone\n$/.test(left), 'it is as it was', left);
    show(left);
  },
};

export const installedScenarios: readonly Scenario[] = [machine, person];
