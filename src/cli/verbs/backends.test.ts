import { expect, test } from 'vitest';
import { text } from './backends.ts';

test('backends says for each what it can do, marks the default, and says NO where there is no security boundary', () => {
  const can = {
    isolation: 'shared-kernel',
    securityBoundary: false,
    acceleration: 'none',
    pause: true,
    suspend: false,
    fork: false,
    snapshot: false,
    diskSnapshot: false,
    hostDirectories: true,
    volumes: true,
    devices: false,
    limits: { cpu: 'enforced', memory: 'host-process', disk: 'no', processes: 'enforced' },
    changes: { cpus: 'live', memory: 'next-start', disk: 'no', processes: 'live', network: 'next-start' },
    networks: ['none', 'allow'],
    notes: ['a \u001b[31mnote'],
  } as const;
  const shown = text({
    default: 'docker',
    backends: [
      { name: 'docker', can: { ...can, networks: [...can.networks], notes: [...can.notes] }, why: null, fix: null },
      { name: 'gvisor', can: null, why: 'runsc is not installed', fix: 'apt-get install runsc' },
    ],
  });
  const row = (label: string): string[] => (shown.split('\n').find((line) => line.startsWith(label)) ?? '').split(/ {3,}/).slice(1);
  expect(shown.split('\n')[0]).toMatch(/docker \* +gvisor/);
  expect(row('works here')).toEqual(['yes', 'no']);
  expect(row('security boundary')).toEqual(['NO', '-']);
  expect(row('limit memory')).toEqual(['host-process', '-']);
  expect(row('limit disk')).toEqual(['no', '-']);
  expect(row('change cpus')).toEqual(['live', '-']);
  expect(row('networks')).toEqual(['none, allow', '-']);
  expect(shown).toContain('docker: a note');
  expect(shown).toContain('gvisor: runsc is not installed\n');
  expect(shown).toContain('fix: apt-get install runsc');
});
