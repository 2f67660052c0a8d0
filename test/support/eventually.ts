// Waits for what has no event to wait for.

const EVENTUALLY_MS = 30_000;
const LOOK_EVERY_MS = 10;

/** Looks until `check` is true; after `deadlineMs` fails with what it waited for. */
export async function eventually(what: string, check: () => boolean | Promise<boolean>, deadlineMs = EVENTUALLY_MS): Promise<void> {
  const until = performance.now() + deadlineMs;
  while (!(await check())) {
    if (performance.now() > until) throw new Error(`waited ${deadlineMs} ms in vain for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
  }
}
