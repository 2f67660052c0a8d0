import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { LinkedProcess } from '../guest/linked-process.ts';
import { KeptPlaces } from './kept-places.ts';

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

function at(stdout: number, left: string[], id = 'x'): LinkedProcess {
  return { id, offsets: { stdout, stderr: 0 }, [Symbol.dispose]: () => void left.push(`${id}:${stdout}`) } as unknown as LinkedProcess;
}

test('the place of a client that was lost is kept until it comes again, or for half a minute', () => {
  const left: string[] = [];
  using places = new KeptPlaces();
  for (const stdout of [100, 200]) places.enter(at(stdout, left)).keep();
  places.enter(at(100, left, 'other')).keep();
  places.resumed('x', { stdout: 150, stderr: 0 }); // from before 200, and after 100
  expect(left).toEqual(['x:200']);
  vi.advanceTimersByTime(29_999);
  expect(left).toEqual(['x:200']);
  vi.advanceTimersByTime(1);
  expect(left).toEqual(['x:200', 'x:100', 'other:100']);
});

test('a client that came again before its loss was known holds up nobody, and one that left keeps no place', () => {
  const left: string[] = [];
  using places = new KeptPlaces();
  const early = places.enter(at(100, left));
  places.resumed('x', { stdout: 90, stderr: 0 });
  expect(left).toEqual([]);
  early.keep();
  expect(left).toEqual(['x:100']);
  places.enter(at(300, left)).leave();
  expect(left).toEqual(['x:100', 'x:300']);
});

test('with the run all places end, but for those that somebody reads at', () => {
  const left: string[] = [];
  const places = new KeptPlaces();
  places.enter(at(1, left));
  places.enter(at(2, left)).keep();
  places[Symbol.dispose]();
  expect(left).toEqual(['x:2']);
});
