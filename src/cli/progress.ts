// What is under way, as one line on stderr that rewrites itself. Only on a terminal: elsewhere plain lines, at the beginning of
// what is done once on a machine and takes long, and now and then how far that is; with --json nothing.
import type { Progress } from '../sdk/client.ts';
import type { Io } from './io.ts';
import { cut, roughSize, safe } from './output.ts';
import { terminalSize } from './terminal.ts';

export type ProgressLine = {
  show(progress: Progress): void;
  /** Wipes the line; something else is to be written. */
  clear(): void;
};

const EVERY_MS = 80;
/** Between two plain lines about the same work: a log of a minute's preparation has some twenty. */
const PLAIN_EVERY_MS = 3_000;
const PER_CENT_EVERY = 10;

const FIRST = 'preparing the kernel and the image (only the first time; a minute or two)…';
/** By the step at which it begins. */
const NOTICES: Readonly<Record<string, string>> = {
  kernel: FIRST,
  image: FIRST,
  pull: 'pulling the image…',
  import: 'importing the image…',
  'import snapshot': 'importing the snapshot…',
  load: 'bringing the image into the Docker Engine (only the first time)…',
  register: 'reading what the image is made of…',
  unpack: 'unpacking the image for gVisor (only the first time)…',
  booting: 'booting a machine of this shape (only the first time; some seconds)…',
  template: 'making what machines of this shape start from (only once; some seconds)…',
};

/** Of them, what is over in some seconds: that it began is enough. */
const BRIEF = new Set(['template']);

/**
 * Steps that say what a sandbox is made without, what is not put into it, or that a registry makes us wait: whoever asked for it has to
 * know, and not for a moment.
 */
const SHORT = new Set(['network', 'limits', 'file sync', 'registry']);

export function newProgressLine(io: Io, json: boolean): ProgressLine {
  if (!io.isTerminal.stderr) return json ? { show() {}, clear() {} } : notices();
  const told = new Set<string>();
  let lastMs = Number.NEGATIVE_INFINITY;
  let lastStep = '';
  let shown = false;
  return {
    show(progress) {
      if (SHORT.has(progress.step)) {
        this.clear();
        return tell(told, progress.detail ?? progress.step);
      }
      const now = performance.now();
      if (progress.step === lastStep && now - lastMs < EVERY_MS) return;
      lastMs = now;
      lastStep = progress.step;
      shown = true;
      process.stderr.write(`\r\u001b[K${cut(sentence(progress), terminalSize().cols - 1)}`);
    },
    clear() {
      if (shown) process.stderr.write('\r\u001b[K');
      shown = false;
    },
  };
}

function notices(): ProgressLine {
  const told = new Set<string>();
  let lastMs = Number.NEGATIVE_INFINITY;
  let last = '';
  return {
    show(progress) {
      const { step, detail } = progress;
      const notice = SHORT.has(step) ? detail : NOTICES[step];
      if (notice === undefined) return;
      const now = performance.now();
      if (!told.has(notice)) {
        tell(told, notice);
        lastMs = now;
      }
      const stand = standOf(progress);
      if (SHORT.has(step) || BRIEF.has(step) || stand === null || stand === last || now - lastMs < PLAIN_EVERY_MS) return;
      [last, lastMs] = [stand, now];
      process.stderr.write(`hutch: ${safe(stand)}\n`);
    },
    clear() {},
  };
}

/** Which part of it is under way, in steps of ten per cent; null: nothing is said of that. */
function standOf({ step, detail, done, total }: Progress): string | null {
  const percent =
    done === undefined || total === undefined ? null : PER_CENT_EVERY * Math.floor((100 * done) / Math.max(total, 1) / PER_CENT_EVERY);
  if (detail === undefined && percent === null) return null;
  return `${step}${detail === undefined ? '' : `: ${detail}`}${percent === null ? '' : ` (${percent} %)`}`;
}

function tell(told: Set<string>, notice: string): void {
  if (told.has(notice)) return;
  told.add(notice);
  process.stderr.write(`hutch: ${safe(notice)}\n`);
}

function sentence({ step, detail, done, total, unit }: Progress): string {
  const show = (amount: number) => (unit === 'bytes' ? roughSize(amount) : String(amount));
  const part =
    done === undefined
      ? ''
      : total === undefined
        ? ` ${show(done)}`
        : ` ${show(done)} of ${show(total)} (${Math.floor((100 * done) / Math.max(total, 1))} %)`;
  return safe(`${step}${detail === undefined ? '' : `: ${detail}`}${part}`);
}
