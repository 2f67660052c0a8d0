// What each stage of a start took, in order: for the trace and the bench.

export type Stages = {
  /** Ends the stage that began with the last call, or with the stages themselves. */
  done(stage: string): void;
  readonly tookMs: Readonly<Record<string, number>>;
};

export function newStages(monotonicMs: () => number): Stages {
  const tookMs: Record<string, number> = {};
  let since = monotonicMs();
  return {
    done(stage) {
      const now = monotonicMs();
      tookMs[stage] = now - since;
      since = now;
    },
    tookMs,
  };
}
