// The user's terminal while a program in a sandbox has it: raw mode, its size, the detach keys.
// Always true: raw mode is put back on every way out that a process can see.
import { spawnSync } from 'node:child_process';
import { usage } from './args.ts';

export type TerminalSize = { readonly cols: number; readonly rows: number };

export function terminalSize(): TerminalSize {
  const stream = process.stdout.isTTY ? process.stdout : process.stderr;
  return { cols: stream.columns || 80, rows: stream.rows || 24 };
}

/** Raw until disposed, or until the process ends by whatever way. */
export function rawMode(): Disposable {
  const { stdin } = process;
  if (!stdin.isTTY) return { [Symbol.dispose]() {} };
  const restore = (): void => {
    stdin.setRawMode(false);
  };
  const enter = (): void => {
    stdin.setRawMode(true);
    // libuv leaves output processing on, which would make the \r\n of the terminal inside \r\r\n. What it
    // puts back are the settings from before its own change, this one with them.
    spawnSync('stty', ['-opost'], { stdio: [0, 'ignore', 'ignore'] });
  };
  // A shell that stopped us has set the terminal for itself meanwhile.
  const again = (): void => {
    restore();
    enter();
  };
  enter();
  process.on('exit', restore);
  process.on('SIGCONT', again);
  return {
    [Symbol.dispose]() {
      process.off('exit', restore);
      process.off('SIGCONT', again);
      restore();
    },
  };
}

export function onResize(listener: (size: TerminalSize) => void): Disposable {
  const onChange = (): void => listener(terminalSize());
  process.on('SIGWINCH', onChange);
  return {
    [Symbol.dispose]() {
      process.off('SIGWINCH', onChange);
    },
  };
}

const DEFAULT_KEYS = 'ctrl-p,ctrl-q';

/** `ctrl-p,ctrl-q` as bytes. @throws HutchError naming the flag. */
export function parseDetachKeys(text: string = DEFAULT_KEYS): Uint8Array {
  if (text === '') return new Uint8Array(0);
  return Uint8Array.from(
    text.split(',').map((key) => {
      const held = /^ctrl-([a-z@[\\\]^_])$/i.exec(key)?.[1];
      if (held !== undefined) return held.toUpperCase().charCodeAt(0) & 0x1f;
      if (/^[\x21-\x7e]$/.test(key)) return key.charCodeAt(0);
      throw usage(`--detach-keys: '${key}' is no key`, 'write them like ctrl-p,ctrl-q');
    }),
  );
}

/** Finds a sequence of keys in typed bytes that come in any pieces; what only began like it is passed on. */
export class DetachKeys {
  readonly #keys: Uint8Array;
  #matched = 0;

  constructor(keys: Uint8Array) {
    this.#keys = keys;
  }

  /** The bytes to pass on, and whether the sequence is complete (what follows it is dropped). */
  push(typed: Uint8Array): { readonly bytes: Uint8Array; readonly detached: boolean } {
    if (this.#keys.length === 0) return { bytes: typed, detached: false };
    const out: number[] = [];
    for (const byte of typed) {
      if (byte === this.#keys[this.#matched]) {
        this.#matched += 1;
        if (this.#matched === this.#keys.length) return { bytes: Uint8Array.from(out), detached: true };
        continue;
      }
      out.push(...this.#keys.subarray(0, this.#matched));
      this.#matched = byte === this.#keys[0] ? 1 : 0;
      if (this.#matched === 0) out.push(byte);
    }
    return { bytes: Uint8Array.from(out), detached: false };
  }
}
