// Which stages of a Dockerfile a build needs, and what each waits for. A stage that nobody needs is never looked at.

import type { Dockerfile, Instruction, Stage } from './dockerfile.ts';
import { DockerfileError } from './dockerfile-error.ts';

export const STAGES_MAX = 200;

/** Where a FROM or a `--from` leads: to a stage before, or to an image. */
export type Origin =
  | { readonly kind: 'stage'; readonly index: number }
  | { readonly kind: 'image'; readonly name: string }
  | { readonly kind: 'scratch' };

/** By name or number; anything else is an image. Only stages before `before` count. */
export function originOf(dockerfile: Dockerfile, name: string, before: number): Origin {
  if (name === 'scratch') return { kind: 'scratch' };
  const stages = dockerfile.stages.slice(0, before);
  const byName = stages.findLast(({ from }) => from.as?.toLowerCase() === name.toLowerCase());
  if (byName !== undefined) return { kind: 'stage', index: byName.index };
  if (/^\d{1,4}$/.test(name) && Number(name) < before) return { kind: 'stage', index: Number(name) };
  return { kind: 'image', name };
}

/** The stage that is to become the image: by name, by number, else the last one. */
export function targetOf(dockerfile: Dockerfile, target: string | null): Stage {
  const { stages } = dockerfile;
  const found =
    target === null
      ? stages.at(-1)
      : (stages.find(({ from }) => from.as?.toLowerCase() === target.toLowerCase()) ??
        (/^\d{1,4}$/.test(target) ? stages[Number(target)] : undefined));
  if (found !== undefined) return found;
  const names = stages.flatMap(({ from }) => (from.as === null ? [] : [from.as]));
  throw new DockerfileError(
    1,
    null,
    `there is no stage ${JSON.stringify(target?.slice(0, 60))}${names.length === 0 ? '; none has a name' : `; there is ${names.join(', ')}`}`,
  );
}

/** What the steps of a stage take from elsewhere. `expandName`: with its variables replaced. */
export function originsOf(dockerfile: Dockerfile, stage: Stage, expandName: (name: string, stage: Stage) => string): readonly Origin[] {
  const names = [expandName(stage.from.image, stage), ...stage.steps.flatMap(fromsOf).map((name) => expandName(name, stage))];
  return names.map((name) => originOf(dockerfile, name, stage.index));
}

function fromsOf(step: Instruction): readonly string[] {
  if (step.name === 'COPY') return step.flags.from === null ? [] : [step.flags.from];
  return step.name === 'RUN' ? step.mounts.flatMap(({ from }) => (from === null ? [] : [from])) : [];
}

/** The stages that `target` needs, itself last; each after those that it needs. */
export function neededStages(dockerfile: Dockerfile, target: Stage, expandName: (name: string, stage: Stage) => string): readonly Stage[] {
  if (dockerfile.stages.length > STAGES_MAX) throw new DockerfileError(1, null, `it has more than ${STAGES_MAX} stages`);
  const needed = new Set<number>();
  const look = [target.index];
  for (let index = look.pop(); index !== undefined; index = look.pop()) {
    const stage = dockerfile.stages[index];
    if (stage === undefined || needed.has(index)) continue;
    needed.add(index);
    for (const origin of originsOf(dockerfile, stage, expandName)) if (origin.kind === 'stage') look.push(origin.index);
  }
  return dockerfile.stages.filter(({ index }) => needed.has(index));
}
