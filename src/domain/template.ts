// What a template is: a tag on a snapshot, with the recipe that it was made by. The tag moves when a new one is ready, never before.
import type { BuildId, ImageId, ProjectId, SnapshotId, TemplateId } from './ids.ts';
import type { JsonObject } from './records.ts';

/** How many ready sandboxes are kept: always `min`, and up to `max` while they are asked for. */
export type Warmth = { readonly min: number; readonly max: number };

export type Template = {
  readonly id: TemplateId;
  readonly projectId: ProjectId;
  /** Unique in its project. */
  readonly name: string;
  /** As it was asked for. */
  readonly recipe: JsonObject;
  /** What its steps made of the recipe's image: what a rebuild boots. */
  readonly imageId: ImageId;
  /** What sandboxes start from. */
  readonly snapshotId: SnapshotId;
  /** Of what was written down: another one after each build. */
  readonly digest: string;
  readonly warm: Warmth;
  readonly createdAtMs: number;
  readonly builtAtMs: number;
  /** The build that made it: its log. */
  readonly buildId: BuildId;
};

/** Of the ready sandboxes of one template. */
export const WARM_MAX = 64;

/** A number alone is as many always; none is 0. */
export function parseWarmth(text: string): Warmth | null {
  const found = /^(\d{1,4})(?:\.\.(\d{1,4}))?$/.exec(text);
  if (found === null) return null;
  const min = Number(found[1]);
  return { min, max: found[2] === undefined ? min : Number(found[2]) };
}

export function shownWarmth({ min, max }: Warmth): string {
  return min === max ? String(min) : `${min}..${max}`;
}

/** Of a sandbox that was made from it lately, one more is kept; as many as were, but never more than `max`. */
export function warmWanted({ min, max }: Warmth, handedOut: number): number {
  return Math.min(max, Math.max(min, handedOut));
}

/** What the one builder is told of a recipe. */
export type Steps = {
  readonly image: string;
  /** Of the image: who it runs as in the end. */
  readonly user: string;
  readonly env: Readonly<Record<string, string>>;
  readonly workdir: string | null;
  readonly steps: readonly string[];
};

/** The word that ends the text of a step. */
const END = 'HUTCH_END_OF_STEP';

/** What the one builder does for a recipe. Steps are done as root, with the recipe's environment and in its directory. */
export function dockerfileOf(of: Steps): string {
  return [...head(of), ...of.steps.map(instruction), `USER ${of.user}`, ''].join('\n');
}

/** Which step stands at a line of that, from 0; null: none does. */
export function stepAtLine(of: Steps, line: number): number | null {
  let next = head(of).length + 1;
  for (const [at, step] of of.steps.entries()) {
    next += instruction(step).split('\n').length;
    if (line < next) return line < head(of).length + 1 ? null : at;
  }
  return null;
}

function head({ image, env, workdir }: Steps): readonly string[] {
  return [
    `FROM ${image}`,
    'USER root',
    ...Object.entries(env).map(([name, value]) => `ENV ${name}="${value.replace(/[\\"$]/g, '\\$&')}"`),
    ...(workdir === null ? [] : [`WORKDIR ${JSON.stringify(workdir)}`]),
  ];
}

function instruction(step: string): string {
  return isOneLine(step) ? `RUN ${step}` : `RUN <<${END}\nset -e\n${step}\n${END}`;
}

function isOneLine(step: string): boolean {
  return !step.includes('\n') && !step.endsWith('\\') && !step.includes('<<');
}

/** Why steps cannot be told to the builder; null: they can. */
export function stepsRefusal({ env, workdir, steps }: Pick<Steps, 'env' | 'workdir' | 'steps'>): string | null {
  if (steps.length === 0) return null;
  const broken = Object.entries(env).find(([, value]) => /[\n\r]/.test(value));
  if (broken !== undefined) return `env.${broken[0]} has several lines: with steps it must be one`;
  if (workdir !== null && /[\n\r$]/.test(workdir)) return 'workdir must have no $ and be one line';
  const bad = steps.findIndex((step) => step.trim() === '' || step.split('\n').includes(END));
  return bad < 0 ? null : `steps.${bad} is empty, or has a line ${END}`;
}
