// The drawings in docs/architecture.md are held against the code, so that they cannot drift.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { expect, test } from 'vitest';
import { ACCEPTS } from '../../src/domain/sandbox.ts';

const page = readFileSync('docs/architecture.md', 'utf8');
const AFTER: Record<string, readonly string[]> = {
  started: ['running'],
  paused: ['paused'],
  resumed: ['running'],
  suspended: ['suspended'],
  ended: ['stopped'],
  failed: ['error'],
  recovered: ['running', 'paused'],
  deleted: ['deleted'],
};

test('the drawing of the states shows every legal edge and no other', () => {
  const drawn = [...page.matchAll(/^ {2}(\w+) --> (\w+)(?:: (\w+))?$/gm)]
    .map(([, from, to, event]) => `${from} ${event ?? 'deleted'} ${to}`)
    .filter((edge) => (edge.split(' ')[0] as string) in ACCEPTS);
  const legal = Object.entries(ACCEPTS).flatMap(([from, events]) =>
    events.flatMap((event) => (AFTER[event] ?? []).map((to) => `${from} ${event} ${to}`)),
  );
  expect(drawn.toSorted()).toEqual(legal.toSorted());
});

test('the drawing of the sources shows only arrows that the import rule allows', () => {
  const config = createRequire(import.meta.url)('../../.dependency-cruiser.cjs') as {
    forbidden: { name: string; to: { pathNot?: string[] } }[];
  };
  const drawing = page.slice(page.indexOf('flowchart RL'), page.indexOf('```', page.indexOf('flowchart RL')));
  const arrows = [...drawing.matchAll(/^ {2}(\w+) (?:-->|-\. types \.->) (\w+)$/gm)].map(([, from, to]) => [from ?? '', to ?? ''] as const);
  expect(arrows.length).toBeGreaterThan(10);
  for (const [from, to] of arrows) {
    const rule = config.forbidden.find(({ name }) => name === `${from}-imports-only-what-it-may`);
    if (rule === undefined) continue; // the daemon may construct anything
    expect(rule.to.pathNot, `${from} → ${to}`).toContain(`^src/${to}/`);
  }
});
