// A real terminal for tests: tmux, whose screen is what a person would see.
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { eventually } from '../support/eventually.ts';
import type { World } from './world.ts';

const run = promisify(execFile);

export class Screen implements AsyncDisposable {
  readonly #world: World;
  readonly #socket: string;
  static #opened = 0;

  private constructor(world: World, socket: string) {
    this.#world = world;
    this.#socket = socket;
  }

  /** A shell of ours in a terminal of that size; `$H` is the CLI. */
  static async open(world: World, { cols = 80, rows = 24 } = {}): Promise<Screen> {
    Screen.#opened += 1;
    const screen = new Screen(world, join(world.dir, `tmux${Screen.#opened}`));
    const shell = `env PS1='ours> ' H='${process.execPath} ${world.bundle}' sh`;
    await screen.tmux('-u', 'new-session', '-d', '-x', String(cols), '-y', String(rows), shell);
    await screen.tmux('set-option', '-g', 'window-size', 'manual');
    await screen.shows('ours>');
    return screen;
  }

  async tmux(...args: string[]): Promise<string> {
    return (await run('tmux', ['-S', this.#socket, '-f', '/dev/null', ...args], { env: { ...this.#world.env, LANG: 'C.UTF-8' } })).stdout;
  }

  async type(text: string): Promise<void> {
    await this.tmux('send-keys', '-l', text);
  }

  async press(...keys: string[]): Promise<void> {
    await this.tmux('send-keys', ...keys);
  }

  async enter(line: string): Promise<void> {
    await this.type(line);
    await this.press('Enter');
  }

  async resize(cols: number, rows: number): Promise<void> {
    await this.tmux('resize-window', '-x', String(cols), '-y', String(rows));
  }

  async text(): Promise<string> {
    return await this.tmux('capture-pane', '-p');
  }

  async shows(text: string | RegExp): Promise<void> {
    let last = '';
    const look = async (): Promise<boolean> => {
      last = await this.text();
      return typeof text === 'string' ? last.includes(text) : text.test(last);
    };
    await eventually(`the screen to show ${text}`, look).catch((error: Error) => {
      throw new Error(`${error.message}; it shows:\n${last}`);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.tmux('kill-server').catch(() => {}); // it ends by itself with its shell
  }
}
