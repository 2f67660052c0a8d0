// One stage of a build, from its FROM to its last step: each step's layer out of the cache, or made. Always true: what a stage gives
// depends on its key alone, and a step begins only when the one before is done.
import type { Operation } from '../host/operation.ts';
import { type Instruction, parseInstruction, type Stage } from '../images/build/dockerfile.ts';
import { DockerfileError } from '../images/build/dockerfile-error.ts';
import { originOf } from '../images/build/graph.ts';
import { firstKey, keyOf } from '../images/build/keys.ts';
import { readLines } from '../images/build/lines.ts';
import { isOwnPlatform, refusalOfPlatform } from '../images/build/platform.ts';
import { applied, newState } from '../images/build/state.ts';
import { copyStep, workdirStep } from './build-copy-step.ts';
import { RunSteps } from './build-run-step.ts';
import { StageNow } from './build-stage-now.ts';
import type { Built, StageParts } from './build-stage-parts.ts';

const STEP_CHARS_MAX = 200;

export class StageBuilder {
  readonly #now: StageNow;

  constructor(parts: StageParts, stage: Stage) {
    this.#now = new StageNow(parts, stage);
  }

  /** @throws HutchError with the step, its line, and for a command its exit code and the last of its output. */
  async build(op: Operation): Promise<Built> {
    await using undo = new AsyncDisposableStack();
    const runs = undo.use(new RunSteps(this.#now));
    const triggers = await this.#begin(op);
    const steps = [...triggers, ...this.#now.stage.steps];
    for (const [at, step] of steps.entries()) {
      op.signal.throwIfAborted();
      await this.#step(op, runs, step, at + 1, steps.length);
      this.#now.parts.stepDone();
    }
    // Its sandbox ends while others go on, and the image is packed.
    this.#now.parts.ending(undo.disposeAsync());
    return this.#now.built();
  }

  async #begin(op: Operation): Promise<readonly Instruction[]> {
    const { dockerfile, log } = this.#now.parts;
    const { from } = this.#now.stage;
    const name = this.#now.globally(from, from.image);
    if (name === '')
      throw new DockerfileError(from.line, 'FROM', `${from.image} is empty: give the ARG before it a default, or --build-arg`);
    const platform = from.platform === null ? '' : this.#now.globally(from, from.platform);
    if (platform !== '' && !isOwnPlatform(platform))
      throw new DockerfileError(from.line, 'FROM', `--platform=${refusalOfPlatform(platform).message}`);
    log.step(this.#now.name, `FROM ${name}${from.as === null ? '' : ` AS ${from.as}`}`, from.line);
    this.#now.parts.stepBegun(this.#now.stage.index, stepText(this.#now.name, `FROM ${name}`));
    const origin = originOf(dockerfile, name, this.#now.stage.index);
    if (origin.kind === 'scratch') {
      this.#now.key = firstKey('scratch');
      this.#now.state = newState({ WorkingDir: '/' }, null);
      return [];
    }
    const before = origin.kind === 'stage' ? await this.#now.parts.stage(origin.index) : await this.#now.base(op, from, origin.name);
    this.#now.beginWith(before, firstKey(before.key));
    // Triggers of the base image, as if they stood here.
    return (before.state.config.OnBuild ?? []).flatMap((trigger) => {
      const [first] = readLines(trigger).lines;
      return first === undefined ? [] : [{ ...parseInstruction(first, '\\'), line: from.line }];
    });
  }

  async #step(op: Operation, runs: RunSteps, step: Instruction, number: number, count: number): Promise<void> {
    const { log, globals, dockerfile } = this.#now.parts;
    const name = this.#now.name;
    op.progress({ step: 'build', detail: `${name} ${number}/${count}: ${step.text.slice(0, 80)}` });
    log.step(name, step.text, step.line, { number, count });
    this.#now.parts.stepBegun(this.#now.stage.index, stepText(`${name} ${number}/${count}`, step.text));
    const next = applied(this.#now.state, step, globals, dockerfile.escapeChar);
    if (next !== null) {
      if (step.name === 'ARG') for (const { key } of step.args) this.#now.parts.declared(key);
      this.#now.state = next;
      this.#now.key = keyOf(
        'config',
        this.#now.key,
        step.name,
        JSON.stringify([next.config, next.author, step.name === 'ARG' ? '' : step.text]),
      );
      if (step.name !== 'ARG') this.#now.note(step.text, true);
      return;
    }
    switch (step.name) {
      case 'RUN':
        return await runs.run(op, step);
      case 'COPY':
      case 'ADD':
        return await copyStep(op, this.#now, step);
      case 'WORKDIR':
        return await workdirStep(op, this.#now, step);
      default:
        throw new DockerfileError(step.line, step.name, 'it cannot stand here');
    }
  }
}

function stepText(place: string, text: string): string {
  return `${place}: ${(text.split('\n', 1)[0] ?? '').slice(0, STEP_CHARS_MAX)}`;
}
