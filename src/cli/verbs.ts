// The table of the CLI's verbs, at most 30. Help, completion and docs/cli.md are made from it.
import { changeVerbs } from './table/change.ts';
import { lookVerbs } from './table/look.ts';
import { machineVerbs } from './table/machine.ts';
import { reachVerbs } from './table/reach.ts';
import { runVerbs } from './table/run.ts';
import { traceVerbs } from './table/trace.ts';
import type { Verb } from './verb.ts';

export const VERBS: readonly Verb[] = [...runVerbs, ...lookVerbs, ...changeVerbs, ...reachVerbs, ...traceVerbs, ...machineVerbs];
