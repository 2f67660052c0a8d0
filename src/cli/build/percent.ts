// How far a build is, by the lines that it says: a step that begins tells that those before it in its stage are done.

/** A line of a build's log, as far as it says that. */
export type StepLine = { readonly type: string; readonly stage: string; readonly number?: number | undefined };

/** Of a build of so many steps, for each line the percent that are done by then: less than 100 until it is over. */
export function percentDone(stepsTotal: number): (line: StepLine) => number {
  const before = new Map<string, number>();
  return ({ type, stage, number }) => {
    if (type === 'step' && number !== undefined) before.set(stage, number - 1);
    const done = [...before.values()].reduce((sum, each) => sum + each, 0);
    return stepsTotal === 0 ? 0 : Math.min(99, Math.floor((done * 100) / stepsTotal));
  };
}
