// Reads along while mmdebstrap works, to say how far it is. What it prints is for people and may
// change: a line that is not understood is no error, there is then only less to show.
import type { Progress } from '../host/operation.ts';

type Step = Omit<Progress, 'step'>;

const LINE_CHARS_MAX = 4096;
const UNITS: Readonly<Record<string, number>> = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9 };

const PHASE = /^I: (running apt-get update|downloading packages|extracting archives|installing \w+ packages|cleaning|creating)/;

export function followMmdebstrap(report: (step: Step) => void): (chunk: Uint8Array) => void {
  let rest = '';
  let download = { done: 0, total: 0 };
  let packages = { done: 0, total: 0 };
  const onLine = (line: string): void => {
    const [, phase] = PHASE.exec(line) ?? [];
    if (phase !== undefined) {
      report({ detail: PHASES[phase] ?? phase });
    }
    const [, count] = /, (\d+) newly installed,/.exec(line) ?? [];
    if (count !== undefined) packages = { done: 0, total: Number(count) };
    const [, need, needUnit = ''] = /^Need to get ([\d.]+) (\wB|B) (?:of|\/)/.exec(line) ?? [];
    if (need !== undefined) download = { done: 0, total: Math.round(Number(need) * (UNITS[needUnit] ?? 0)) };
    const [, got, gotUnit = ''] = /^Get:\d+ .*\[([\d.]+) (\wB|B)\]$/.exec(line) ?? [];
    if (got !== undefined && download.total > 0) {
      download.done = Math.min(download.total, download.done + Math.round(Number(got) * (UNITS[gotUnit] ?? 0)));
      report({ detail: 'downloading packages', ...download, unit: 'bytes' });
    }
    const [, name] = /^Setting up (\S+)/.exec(line) ?? [];
    if (name !== undefined && packages.total > 0) {
      packages.done = Math.min(packages.total, packages.done + 1);
      report({ detail: `installing ${name}`, ...packages, unit: 'items' });
    }
  };
  return (chunk) => {
    const lines = (rest + new TextDecoder().decode(chunk)).split(/[\r\n]+/);
    rest = (lines.pop() ?? '').slice(-LINE_CHARS_MAX);
    for (const line of lines) onLine(line);
  };
}

const PHASES: Readonly<Record<string, string>> = {
  'running apt-get update': 'fetching package lists',
  'downloading packages': 'downloading packages',
  'extracting archives': 'unpacking the base system',
  'installing essential packages': 'installing the base system',
  'installing remaining packages': 'installing packages',
  cleaning: 'cleaning up',
  creating: 'gathering files',
};
