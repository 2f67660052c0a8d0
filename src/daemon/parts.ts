// The parts that a real daemon is made of: the backends with their networks, and what boots in them.
import { fileURLToPath } from 'node:url';
import { type Backend, NO_KVM } from '../backends/backend.ts';
import { newDockerBackend } from '../backends/docker/backend.ts';
import { newGvisorBackend } from '../backends/gvisor/backend.ts';
import type { GvisorConfig } from '../backends/gvisor/config.ts';
import { newQemuBackend } from '../backends/qemu/backend.ts';
import { findCgroups } from '../backends/qemu/cgroup.ts';
import type { Environment, Places } from '../config/places.ts';
import type { Config } from '../config/schema.ts';
import { SANDBOX_UIDS } from '../domain/users.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { proxyVariables } from '../images/debian-sources.ts';
import { KernelLibrary } from '../images/kernels.ts';
import { imagePaths } from '../images/layout.ts';
import { ImageLibrary } from '../images/library.ts';
import { type Mirror, Registry } from '../images/registry/client.ts';
import { Credentials } from '../images/registry/credentials.ts';
import { bridgeNetwork } from '../network/bridge.ts';
import type { Network } from '../network/network.ts';
import { bridgesOf, bridgeTableOf, ownName } from '../network/own-name.ts';
import { rootedNetwork } from '../network/rooted.ts';
import { rootlessNetwork } from '../network/rootless.ts';
import { orVmmUser } from '../network/vmm-user.ts';
import { bootSource } from './boots.ts';
import type { DaemonOptions } from './daemon.ts';
import { type ImageRules, imageRules } from './image-rules.ts';
import { checkReachable } from './reachable.ts';
import { openUsers, type Users } from './users.ts';
import { greetGuest, warmGuest } from './warm.ts';

/** Builds templates; no sandbox's user is ever this one. */
const TEMPLATE_UID = SANDBOX_UIDS.last + 1;

export const makeParts: DaemonOptions['makeParts'] = async ({ op, host, store, places, config, env }) => {
  const prebuilt = await prebuiltDir(op, host);
  const agentPath = `${prebuilt}/hutch-agent`;
  const isRoot = host.uid === 0;
  if (isRoot) await checkReachable(op, host, [places.dataDir, places.runDir]);
  const users = isRoot ? await openUsers(op, { host, store, places, oldTable: ownName(places.dataDir, '_') }) : null;
  const network = networkOf(host, users, config);
  const qemu = newQemuBackend({
    host,
    templatesDir: `${places.dataDir}/templates`,
    workDir: `${places.runDir}/work`,
    shimPath: `${prebuilt}/hutch-shim`,
    readonlyLibraryPath: `${prebuilt}/hutch-readonly.so`,
    imprintPath: `${prebuilt}/hutch-imprint`,
    filesPath: `${prebuilt}/hutch-files`,
    templateOwner: isRoot ? { uid: TEMPLATE_UID, gid: TEMPLATE_UID } : null,
    runRoot: `${places.runDir}/sandboxes`,
    cgroups: await findCgroups(op, host, ownName(places.dataDir, '-')),
    network,
    templateDiskMiB: config.sandbox.disk,
    warmAgent: (warming, dial, disk) => warmGuest(warming, host, dial, disk),
    greetAgent: greetGuest,
  });
  const rules = imageRules(store, config);
  const library = imageLibrary(host, places, config, env, rules);
  return {
    // In the order of preference.
    backends: [qemu, gvisorBackend(host, places, prebuilt, network, whyNoKvm(qemu)), dockerBackend(host, places, env, agentPath)],
    boots: bootSource({ host, store, dataDir: places.dataDir, agentPath, downloadEnv: proxyVariables(env), library, rules }),
    images: library,
    kernels: new KernelLibrary(host, imagePaths(places.dataDir), proxyVariables(env)),
    agentDigest: `sha256:${await host.sha256(op, agentPath)}`,
    qemuVersion: qemuVersion(host),
    uids: users?.uids ?? null,
    leftovers: async (asking) => (await users?.leftovers(asking)) ?? [],
    close: async (closing) => await users?.close(closing),
  };
};

/** Asked of the backend that runs a small guest under it to find out, and remembers the answer for this boot. */
function whyNoKvm(qemu: Backend): GvisorConfig['whyNoKvm'] {
  return async (op) => {
    const probe = await qemu.probe(op);
    if (!probe.ok || probe.can.acceleration === 'kvm') return null;
    const told = probe.can.notes.find((note) => note.startsWith(NO_KVM));
    return told?.slice(NO_KVM.length) ?? 'a small guest of QEMU did not run under /dev/kvm';
  };
}

function imageLibrary(host: Host, places: Places, config: Config, env: Environment, rules: ImageRules): ImageLibrary {
  const credentials = new Credentials(host, env);
  const registry = new Registry({
    host,
    credentials,
    insecure: config.images.insecure_registries,
    caPath: config.images.ca,
    caPaths: new Map(config.images.registry_ca.map(halves)),
    mirrors: config.images.mirrors.map((text) => mirrorOf(...halves(text))),
    proxy: proxyVariables(env),
  });
  return new ImageLibrary({ host, paths: imagePaths(places.dataDir), registry, credentials, policyOf: rules.of });
}

/** `WHAT=VALUE`, as the configuration has made sure. */
function halves(text: string): [what: string, value: string] {
  const at = text.indexOf('=');
  return [text.slice(0, at), text.slice(at + 1)];
}

function mirrorOf(of: string, place: string): Mirror {
  const slash = place.indexOf('/');
  return slash < 0 ? { of, registry: place, prefix: '' } : { of, registry: place.slice(0, slash), prefix: place.slice(slash + 1) };
}

function gvisorBackend(host: Host, places: Places, prebuilt: string, network: Network, noKvm: GvisorConfig['whyNoKvm']): Backend {
  return newGvisorBackend({
    host,
    basesDir: `${places.dataDir}/bases`,
    savedRoots: ['sandboxes', 'snapshots', 'forks'].map((name) => `${places.dataDir}/${name}`),
    workDir: `${places.runDir}/work`,
    shimPath: `${prebuilt}/hutch-shim`,
    cellPath: `${prebuilt}/hutch-cell`,
    automountLibraryPath: `${prebuilt}/hutch-automount.so`,
    imprintPath: `${prebuilt}/hutch-imprint`,
    agentPath: `${prebuilt}/hutch-agent`,
    cgroupName: host.uid === 0 ? `${ownName(places.dataDir, '-')}-gvisor` : null,
    runRoot: `${places.runDir}/sandboxes`,
    network,
    whyNoKvm: noKvm,
  });
}

function dockerBackend(host: Host, { dataDir, runDir }: Places, env: Environment, agentPath: string): Backend {
  const instance = ownName(dataDir, '-');
  const network = bridgeNetwork({ host, table: bridgeTableOf(dataDir), bridges: bridgesOf(dataDir) });
  return newDockerBackend({
    ...{ host, env, agentPath, instance, network },
    ...{ workDir: `${dataDir}/docker`, snapshotsDir: `${dataDir}/snapshots`, runRoot: `${runDir}/sandboxes` },
  });
}

function networkOf(host: Host, users: Users | null, config: Config): Network {
  const own = users === null ? rootlessNetwork({ host }) : rootedNetwork({ host, ...users });
  return config.network.allow_qemu_user_network ? orVmmUser(own) : own;
}

/** Beside the sources, or beside the bundle. */
async function prebuiltDir(op: Operation, host: Host): Promise<string> {
  const candidates = ['../../prebuilt/x86_64', '../prebuilt/x86_64', './prebuilt/x86_64'].map((path) =>
    fileURLToPath(new URL(path, import.meta.url)),
  );
  for (const dir of candidates) if ((await host.stat(op, `${dir}/hutch-agent`)) !== null) return dir;
  throw op.error('failed_precondition', `the programs for guests are missing; they were looked for at ${candidates.join(', ')}`, {
    hint: 'take a fresh copy of Hutch',
  });
}

function qemuVersion(host: Host): (op: Operation) => Promise<string | null> {
  let known: string | null = null;
  return async (op) => {
    if (known !== null) return known;
    const path = await host.which(op, 'qemu-system-x86_64');
    if (path === null) return null;
    const { stdout } = await host.run(op, [path, '--version']);
    known = /version (\S+)/.exec(new TextDecoder().decode(stdout))?.[1] ?? null;
    return known;
  };
}
