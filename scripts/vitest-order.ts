// In which order vitest takes the test files: by itself it begins with the largest, and a suite that is one import would come last
// and hold up the end of the run alone, while every other worker has nothing left to do.
import type { TestSpecification } from 'vitest/node';
import { BaseSequencer } from 'vitest/node';

/** What takes minutes, the longest first; of all others the size tells enough. */
const LONG = [
  'test/conformance/qemu',
  'test/conformance/docker',
  'test/conformance/gvisor',
  'test/faults/many',
  'test/faults/machines',
  'test/workspace/workspace',
  'test/docs/readme',
  'test/build/build',
  'test/conformance/reference',
  'test/faults/',
  'test/bench/',
  'test/qemu/template',
];

export class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification): number => {
      const at = LONG.findIndex((part) => moduleId.includes(`/${part}`));
      return at < 0 ? LONG.length : at;
    };
    return (await super.sort(files)).toSorted((left, right) => place(left) - place(right));
  }
}
