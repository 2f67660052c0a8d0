import { expect, test } from 'vitest';
import { bundleConfig } from './bundle.ts';

const spec = {
  ...{ rootPath: '/r/root', hostname: 'box', linkDir: '/r/link', agent: 'hutch-agent', agentSocket: 'agent.sock' },
  ...{ mounts: [], cgroupsPath: null, netnsPath: null },
};
type Config = {
  readonly mounts: readonly { readonly destination: string; readonly type: string; readonly source: string; readonly options?: string[] }[];
  readonly linux: { readonly cgroupsPath?: string; readonly namespaces: readonly { readonly type: string; readonly path?: string }[] };
};

test('what lies on the host is read-only in a sandbox, but for its own layer', () => {
  const { mounts } = bundleConfig(spec) as Config;
  const binds = mounts.filter(({ type }) => type === 'bind');
  expect(binds.map(({ source }) => source)).toEqual(['/r/root/tmp', '/r/link']);
  expect(binds.filter(({ options }) => options?.includes('ro') !== true).map(({ source }) => source)).toEqual(['/r/root/tmp']);
});

test('directories of the host come last, and can be written where that is wanted', () => {
  const directories = [
    { source: '/host/a', target: '/run/a', readOnly: false },
    { source: '/host/b', target: '/b', readOnly: true },
  ];
  const { mounts } = bundleConfig({ ...spec, mounts: directories }) as Config;
  expect(mounts.slice(-2)).toEqual([
    { destination: '/run/a', type: 'bind', source: '/host/a', options: ['rbind', 'rw', 'nodev'] },
    { destination: '/b', type: 'bind', source: '/host/b', options: ['rbind', 'ro', 'nodev'] },
  ]);
});

test('without a network it has a namespace of its own, with nothing in it', () => {
  const networkOf = (config: object) => (config as Config).linux.namespaces.find(({ type }) => type === 'network');
  expect(networkOf(bundleConfig(spec))).toEqual({ type: 'network' });
  expect(networkOf(bundleConfig({ ...spec, netnsPath: '/r/netns' }))).toEqual({ type: 'network', path: '/r/netns' });
});

test('cgroups are named only where they can be made', () => {
  expect((bundleConfig(spec) as Config).linux).not.toHaveProperty('cgroupsPath');
  expect((bundleConfig({ ...spec, cgroupsPath: '/hutch/sbx' }) as Config).linux.cgroupsPath).toBe('/hutch/sbx');
});
