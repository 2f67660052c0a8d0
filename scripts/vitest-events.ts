// A reporter of vitest for `scripts/vitest.ts`: writes down what happens when it happens, a line of JSON each, so that a
// run which hangs or dies still says what passed, and where it stood. HUTCH_TEST_EVENTS is the file.
import { appendFileSync } from 'node:fs';
import { stripVTControlCharacters } from 'node:util';
import type { Reporter, TestCase, TestModule, TestSuite } from 'vitest/node';

export type TestRan = {
  readonly title: string;
  readonly fullName: string;
  readonly status: string;
  readonly duration: number;
  /** What went wrong, and where; empty unless it failed. */
  readonly why: string;
};
export type FileRan = { readonly name: string; readonly status: string; readonly message: string; readonly tests: readonly TestRan[] };
/** `at`: something of that file happened. `ended`: all of it. */
export type VitestEvent = { readonly files: readonly string[] } | { readonly at: string } | { readonly ended: FileRan };

const path = process.env['HUTCH_TEST_EVENTS'] ?? '';

function say(event: VitestEvent): void {
  appendFileSync(path, `${JSON.stringify(event)}\n`);
}

export default class Events implements Reporter {
  onTestRunStart(specifications: readonly { readonly moduleId: string }[]): void {
    say({ files: specifications.map(({ moduleId }) => moduleId) });
  }

  onTestModuleQueued({ moduleId }: TestModule): void {
    say({ at: moduleId });
  }

  onTestModuleCollected({ moduleId }: TestModule): void {
    say({ at: moduleId });
  }

  onTestCaseReady({ module }: TestCase): void {
    say({ at: module.moduleId });
  }

  onTestCaseResult({ module }: TestCase): void {
    say({ at: module.moduleId });
  }

  onTestModuleEnd(module: TestModule): void {
    const tests = [...module.children.allTests()].map((test) => ({
      title: test.name,
      fullName: fullName(test),
      status: test.result().state,
      duration: test.diagnostic()?.duration ?? 0,
      why: why(test),
    }));
    const message = module
      .errors()
      .map((error) => error.message)
      .join('; ');
    say({ ended: { name: module.moduleId, status: module.state(), message, tests } });
  }
}

/** What a summary has room for. */
const WHY_CHARS_MAX = 1_500;

/** Messages, what was expected against what came, and the test's own line. */
function why(test: TestCase): string {
  const told = (test.result().errors ?? []).map(({ message, diff, stacks }) => {
    const at = stacks?.find(({ file }) => file === test.module.moduleId);
    return [message, diff ?? '', at === undefined ? '' : `at line ${at.line}`].filter((part) => part !== '').join('\n');
  });
  return stripVTControlCharacters(told.join('\n')).slice(0, WHY_CHARS_MAX);
}

function fullName(test: TestCase): string {
  const names = [test.name];
  for (let above: TestModule | TestSuite = test.parent; above.type === 'suite'; above = above.parent) names.unshift(above.name);
  return names.join(' ');
}
