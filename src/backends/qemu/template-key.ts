// What a template is a template of. Everything that its saved memory and device state depend on is in
// the key, so that a template is either right for a start or not found.
import { createHash } from 'node:crypto';
import type { Shape } from '../../domain/sandbox.ts';
import type { MachineFiles } from '../backend.ts';
import type { Fingerprint } from './bundle.ts';
import { MEMORY_STEP_MIB } from './config.ts';
import { kernelCommandLine, type MachineShape, machineArgs } from './machine.ts';

/** Raise it when what the template's guest has done before it is saved changes in a way that nothing below shows. */
const TEMPLATE_FORMAT = 3;

export type TemplateKey = string & { readonly templateKey: unique symbol };

export type TemplateRecipe = {
  readonly key: TemplateKey;
  /** What of it must still hold where a machine goes on that was started from the template. */
  readonly fingerprint: Fingerprint;
  readonly machine: MachineShape;
  readonly commandLine: string;
  /** Of the disk that is mounted in it. */
  readonly diskBytes: number;
  readonly boot: MachineFiles;
};

/** The processor as its owner would name it: a state saved on another one may not run here. */
export type HostCpu = { readonly identity: string; readonly tscKhz: number | null };

export function templateRecipe(
  shape: Pick<Shape, 'cpus' | 'memoryMiB'>,
  boot: MachineFiles,
  emulatorVersion: string,
  acceleration: MachineShape['acceleration'],
  cpu: HostCpu,
  diskBytes: number,
  { volumes, directories }: Pick<MachineShape, 'volumes' | 'directories'> = { volumes: 0, directories: false },
): TemplateRecipe {
  const machine = { acceleration, cpus: shape.cpus, memoryMiB: roundedMemoryMiB(shape.memoryMiB), volumes, directories };
  const commandLine = kernelCommandLine(acceleration, cpu.tscKhz);
  const named = { memoryPath: null, imagePath: 'i', disks: { vdb: 'd', vdc: null }, volumes: [], filesSocket: null };
  const argv = machineArgs(machine, named, { kind: 'unconnected' }, { kind: 'boot', kernelPath: 'k', initramfsPath: 'r', commandLine });
  // Under software emulation the guest sees QEMU's processor, whatever the host's is.
  const seenCpu = acceleration === 'kvm' ? cpu.identity : '';
  const facts = [
    TEMPLATE_FORMAT,
    boot.imageDigest,
    boot.kernelDigest,
    boot.initramfsDigest,
    emulatorVersion,
    diskBytes,
    seenCpu === '' ? 'tcg' : seenCpu,
    argv,
  ];
  const key = createHash('sha256').update(JSON.stringify(facts)).digest('hex').slice(0, 40) as TemplateKey;
  const fingerprint = {
    ...{ emulator: emulatorVersion, acceleration, cpu: seenCpu, cpus: machine.cpus, memoryMiB: machine.memoryMiB },
    image: boot.imageDigest,
    // A machine that goes on needs no command line any more: it may name a clock that another boot of the host has not.
    machine: createHash('sha256')
      .update(JSON.stringify(argv.slice(0, argv.indexOf('-append'))))
      .digest('hex'),
    kernel: boot.kernelDigest,
    agent: boot.initramfsDigest,
  };
  return { key, fingerprint, machine, commandLine, diskBytes, boot };
}

export function roundedMemoryMiB(memoryMiB: number): number {
  return Math.ceil(memoryMiB / MEMORY_STEP_MIB) * MEMORY_STEP_MIB;
}
