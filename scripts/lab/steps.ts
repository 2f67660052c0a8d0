// How scenarios ask the outer VM for something: each step says what it does, and how long that took by
// the lab's own clock. A step that fails shows its script and all that it printed.
import { stripVTControlCharacters } from 'node:util';
import { command } from './machine.ts';

/** By the lab's clock, which counts instructions: what takes longer hangs, however slow this machine is. */
const STEP_SECONDS_MAX = 900;
/** By ours it may take so many times as long; after that the lab itself hangs. */
const SLOWDOWN_MAX = 20;
const OUTPUT_CHARS_SHOWN = 4_000;

export type StepOptions = {
  readonly user?: string;
  /** Its exit code matters to nobody. */
  readonly mayFail?: true;
  /** By the lab's clock. Default: `STEP_SECONDS_MAX`. */
  readonly secondsMax?: number;
  /** Lines of its output that are said as they come: of what takes hours. */
  readonly live?: RegExp;
};

const said: string[] = [];

/** To who waits, and into the record. */
export function say(line: string): void {
  said.push(line);
  console.log(line);
}

/** All that was said, for the record. */
export function allSaid(): readonly string[] {
  return said;
}

/** Runs a shell script in the checkout; returns what it printed. @throws when it ends with another code than 0. */
export async function step(
  what: string,
  script: string,
  { user = 'root', mayFail, secondsMax = STEP_SECONDS_MAX, live }: StepOptions = {},
): Promise<string> {
  const outputs = { 1: '', 2: '' };
  const seconds = (clock: string) => Number(/^lab-clock (\d+)$/m.exec(clock)?.[1] ?? Number.NaN);
  const began = performance.now();
  const argv = ['timeout', '--kill-after=20', String(secondsMax), 'bash', '-c', `${CLOCK}; set -o pipefail; cd /hutch; ${script}`];
  let timer: NodeJS.Timeout | undefined;
  const hung = new Promise<number>((resolve) => {
    timer = setTimeout(resolve, secondsMax * 1_000 * SLOWDOWN_MAX, HUNG);
  });
  const lines = live === undefined ? undefined : linesTo((line) => live.test(line) && show(line));
  const onOutput = (fd: 1 | 2, chunk: Buffer) => {
    const text = chunk.toString('utf8');
    outputs[fd] += text;
    if (fd === 1) lines?.(text);
  };
  const code = await Promise.race([command({ argv, user, onOutput }), hung]).finally(() => clearTimeout(timer));
  const tookMs = performance.now() - began;
  if (code !== 0 && mayFail !== true) {
    const said = `${outputs[1]}${outputs[2]}`.slice(-OUTPUT_CHARS_SHOWN);
    throw new Error(`${what}: $ ${script}\n${said}\nended with ${code}${code === HUNG ? ', which means that it took too long' : ''}`);
  }
  say(`lab:   ${what} (${seconds(outputs[2])} s by the lab's clock, ${Math.round(tookMs / 1000)} s by ours)`);
  return outputs[1];
}

/** Takes text as it comes, gives whole lines without their colours. */
function linesTo(take: (line: string) => void): (text: string) => void {
  let rest = '';
  return (text) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) take(stripVTControlCharacters(line));
  };
}

const HUNG = 124;
const CLOCK = "trap 'echo lab-clock $SECONDS >&2' EXIT";

/** Says a piece of what a step printed: the proof. */
export function show(text: string): void {
  for (const line of text.trim().split('\n')) say(`lab:     | ${line.slice(0, 240)}`);
}

export function expect(condition: boolean, what: string, output: string): void {
  if (!condition) throw new Error(`not so: ${what}. The output was:\n${output.slice(-OUTPUT_CHARS_SHOWN)}`);
}
