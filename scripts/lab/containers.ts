// Docker and gVisor where cgroups are of version 2 and systemd keeps them: what is counted and limited is what the kernel says.
// Both are installed for it, from the lab's own packages, and taken away again.
import { at, emptied, type Scenario, seeded } from './scenarios.ts';
import { expect, show, step } from './steps.ts';

const HOME = '/data/containers';
const HERE = at(HOME);
const MIB = 1024 * 1024;
const MEMORY_MIB = 256;
const PIDS = 100;
const HELD_MIB = 64;
const WRITTEN_MIB = 8;

/** Takes a second of a processor, writes and holds so much, and says so. */
const WORK = `import os, time
while time.process_time() < 1: pass
held = os.urandom(${HELD_MIB} * 2**20)
with open("/root/file", "wb") as file:
    file.write(held[:${WRITTEN_MIB} * 2**20]); os.fsync(file.fileno())
print("ready", flush=True)
while True: time.sleep(1)`;

type Kind = {
  readonly backend: 'docker' | 'gvisor';
  readonly packages: string;
  /** Prints the sandbox's directory below /sys/fs/cgroup. */
  readonly cgroup: (name: string) => string;
  readonly limits: Readonly<Record<string, string>>;
};

const KINDS: readonly Kind[] = [
  {
    backend: 'docker',
    packages: 'docker.io',
    cgroup: (name) =>
      `echo /sys/fs/cgroup/system.slice/docker-$(docker ps --quiet --no-trunc --filter label=dev.hutch.sandbox=$(./hutch inspect ${name} --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["id"])')).scope`,
    limits: { cpu: 'enforced', memory: 'enforced', processes: 'enforced' },
  },
  {
    backend: 'gvisor',
    packages: 'runsc',
    cgroup: (name) =>
      `find /sys/fs/cgroup -type d -name $(./hutch inspect ${name} --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["id"])')`,
    limits: { cpu: 'enforced', memory: 'host-process', processes: 'host-process' },
  },
];

const FILES = ['cpu.stat', 'cpu.max', 'memory.current', 'memory.max', 'memory.stat', 'memory.swap.max', 'pids.max', 'io.stat'] as const;

type Figures = {
  readonly cpuUs: number;
  readonly usedBytes: number;
  readonly writtenBytes: number;
  readonly files: Readonly<Record<string, string>>;
};

/** Of files that were printed one after the other, each below a line with its name. */
function figuresOf(text: string): Figures {
  const files = Object.fromEntries(
    text
      .split(/^== /m)
      .slice(1)
      .map((part) => [part.slice(0, part.indexOf('\n')), part.slice(part.indexOf('\n') + 1).trim()]),
  );
  const line = (file: string, key: string): number => Number(new RegExp(`^${key} (\\d+)$`, 'm').exec(files[file] ?? '')?.[1]);
  return {
    files,
    cpuUs: line('cpu.stat', 'usage_usec'),
    usedBytes: Number(files['memory.current']) - line('memory.stat', 'inactive_file'),
    writtenBytes: [...(files['io.stat'] ?? '').matchAll(/wbytes=(\d+)/g)].reduce((sum, [, bytes]) => sum + Number(bytes), 0),
  };
}

type Stats = {
  readonly cpu: { readonly usedUs: number; readonly count: number };
  readonly memory: { readonly totalBytes: number; readonly usedBytes: number };
  readonly disk: { readonly readBytes: number | null; readonly writtenBytes: number | null };
  readonly oomKills: number;
  readonly host: { readonly pssBytes: number; readonly cpuUs: number };
};

const statsOf = (name: string): string => `./hutch stats --no-stream --json ${name} > /tmp/stats; cat /tmp/stats`;
const parsed = (text: string): Stats => JSON.parse(text.trim().split('\n').at(-1) ?? '') as Stats;

async function counted({ backend, cgroup }: Kind, name: string): Promise<Stats> {
  const look = `for file in ${FILES.join(' ')}; do echo "== $file"; cat $dir/$file; done`;
  const seen = await step(
    `${backend}: what the kernel says, what hutch stats says, and the kernel again`,
    `${HERE}; dir=$(${cgroup(name)}); test -d "$dir" || { echo "there is no $dir" >&2; exit 1; }; echo $dir; ${look}; echo ==== ; ${statsOf(name)}; echo; echo ====; ${look}`,
  );
  const [first = '', said = '', last = ''] = seen.split(/^====\s*\n/m);
  const [before, stats, after] = [figuresOf(first), parsed(said), figuresOf(last)];
  show(`${first.split('\n')[0]}: ${JSON.stringify({ ...after.files, 'memory.stat': undefined, 'cpu.stat': after.cpuUs })}`);
  show(`hutch stats: ${said.trim()}`);
  const within = (value: number, low: number, high: number) => value >= low && value <= high;
  expect(after.files['cpu.max'] === '100000 100000', 'one processor, as the kernel keeps it', seen);
  expect(after.files['memory.max'] === String(MEMORY_MIB * MIB), 'the memory asked for', seen);
  expect(after.files['memory.swap.max'] === '0', 'and no swap beside it', seen);
  expect(before.cpuUs >= 1_000_000 && within(stats.cpu.usedUs, before.cpuUs, after.cpuUs), 'the processor time is the kernel’s', seen);
  expect(stats.cpu.count === 1 && stats.memory.totalBytes === MEMORY_MIB * MIB, 'the limits are told', seen);
  expect(stats.disk.writtenBytes !== null && stats.disk.writtenBytes >= WRITTEN_MIB * MIB, 'what was written is counted', seen);
  expect(within(stats.disk.writtenBytes ?? -1, before.writtenBytes, after.writtenBytes), 'as the kernel counts it', seen);
  expect(stats.memory.usedBytes >= HELD_MIB * MIB && stats.memory.usedBytes < MEMORY_MIB * MIB, 'what is held is counted', seen);
  if (backend === 'docker') {
    expect(after.files['pids.max'] === String(PIDS), 'the processes asked for', seen);
    const off = Math.abs(stats.memory.usedBytes - after.usedBytes);
    expect(off < 8 * MIB, `the memory is the kernel’s without what it may take back (${off} bytes off)`, seen);
  }
  return stats;
}

function scenarioOf(kind: Kind): Scenario {
  const { backend, packages, limits } = kind;
  const name = `counted-${backend}`;
  return {
    name: `${backend} with cgroup v2: limits hold, figures are the kernel’s, and counters go on over a stop`,
    long: true,
    run: async () => {
      try {
        await step(
          `${packages} is installed`,
          `DEBIAN_FRONTEND=noninteractive apt-get -qq update && apt-get -qq install --yes ${packages} >/dev/null`,
        );
        await step('a new Hutch', `rm -rf ${HOME}; mkdir -p ${HOME} && chmod 711 ${HOME} && ${seeded(`${HOME}/data`)}`);
        const listed = await step('hutch backends', `${HERE}; ./hutch backends --json`);
        const { backends } = JSON.parse(listed) as {
          backends: readonly { name: string; can: { limits: Record<string, string> } | null; why: string | null }[];
        };
        const mine = backends.find((each) => each.name === backend);
        show(JSON.stringify(mine));
        for (const [limit, how] of Object.entries(limits)) expect(mine?.can?.limits[limit] === how, `${limit} is ${how}`, listed);
        await step(
          'a sandbox that works',
          `${HERE}; cat > /tmp/work.py <<'END'\n${WORK}\nEND
          ./hutch run -d --backend ${backend} --name ${name} --no-net --cpus 1 --memory ${MEMORY_MIB}M --pids ${PIDS} -- python3 -c "$(cat /tmp/work.py)" >/dev/null
          for i in $(seq 240); do ./hutch logs ${name} | grep -q ready && exit; sleep 0.5; done; ./hutch logs ${name}; false`,
        );
        const first = await counted(kind, name);
        const again = parsed(
          await step('stop, start', `${HERE}; ./hutch stop ${name} >/dev/null && ./hutch start ${name} >/dev/null && ${statsOf(name)}`),
        );
        for (const [what, now, then] of [
          ['processor time', again.cpu.usedUs, first.cpu.usedUs],
          ['bytes written', again.disk.writtenBytes ?? -1, first.disk.writtenBytes ?? 0],
        ] as const)
          expect(now >= then, `${what} goes on over a stop`, `${then} ${now}`);
        const greedy = await step(
          'what takes more than it may',
          `${HERE}; ./hutch exec ${name} -- python3 -c 'held = []
while len(held) < ${2 * (MEMORY_MIB / 16)}: held.append(b"x" * (16 * 2**20))
print("held all of it")'; echo "exit code $?"; ./hutch why ${name}; ./hutch inspect ${name} --json`,
        );
        show(greedy.slice(0, greedy.indexOf('{')));
        expect(!/held all of it/.test(greedy) && /exit code [1-9]/.test(greedy), 'is ended', greedy);
        // gVisor's memory is its kernel's too, which ends with it.
        if (backend === 'gvisor') expect(/"oomKilled":\s*true/.test(greedy), 'the sandbox ran out of memory, and says so', greedy);
        else expect(/"state":\s*"running"/.test(greedy), 'and nothing else', greedy);
        const left = await step(
          'rm, leaks',
          `${HERE}; ${emptied(HOME)}; find /sys/fs/cgroup -type d -name 'sbx*'; ${backend === 'docker' ? 'docker ps --all --quiet; docker images --quiet --filter reference=hutch/disk' : 'pgrep -a runsc'}; echo none`,
        );
        expect(/(^|\n)none\n$/.test(left) && left.trim().split('\n').at(-1) === 'none', 'nothing is left', left);
        expect(!left.includes('/sys/fs/cgroup'), 'no cgroup is left', left);
      } finally {
        await step(
          `${packages} is taken away`,
          `${HERE}; ./hutch daemon stop; rm -rf ${HOME} /tmp/work.py /tmp/stats; systemctl stop docker.socket docker containerd; apt-get -qq purge --yes --autoremove ${packages} >/dev/null; rm -rf /var/lib/docker /var/lib/containerd`,
          { mayFail: true },
        );
      }
    },
  };
}

export const containerScenarios: readonly Scenario[] = KINDS.map(scenarioOf);
