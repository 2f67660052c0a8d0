// The table of the CLI's verbs, at most 30: what `hutch --help` lists. Help, completion and docs/cli.md are made from it.
// A verb that would be one too many lies in a group and may have a word of its own as well, or is listed by one
// (docs/decisions/0023).
import { assetVerbs } from './table/assets.ts';
import { changeVerbs } from './table/change.ts';
import { imageVerbs } from './table/image.ts';
import { kernelVerbs } from './table/kernel.ts';
import { lookVerbs } from './table/look.ts';
import { machineVerbs } from './table/machine.ts';
import { quotaVerbs } from './table/quotas.ts';
import { reachVerbs } from './table/reach.ts';
import { runVerbs } from './table/run.ts';
import { snapshotVerbs } from './table/snapshot.ts';
import { sshVerbs } from './table/ssh.ts';
import { systemVerbs } from './table/system.ts';
import { templateVerbs } from './table/template.ts';
import { traceVerbs } from './table/trace.ts';
import { volumeVerbs } from './table/volume.ts';
import { workspaceVerbs } from './table/workspace.ts';
import { isBranch, type Leaf, type Verb } from './verb.ts';

export const VERBS: readonly Verb[] = [
  ...runVerbs,
  ...lookVerbs,
  ...changeVerbs,
  ...snapshotVerbs,
  ...templateVerbs,
  ...volumeVerbs,
  ...reachVerbs,
  ...workspaceVerbs,
  ...sshVerbs,
  ...traceVerbs,
  ...imageVerbs,
  ...kernelVerbs,
  ...assetVerbs,
  ...quotaVerbs,
  ...machineVerbs,
  ...systemVerbs,
];

/** What the overview lists. */
export const LISTED: readonly Verb[] = VERBS.filter(({ under }) => under === undefined);

/** The verbs that a group's help lists beside its own. */
export function listedUnder(group: string): readonly Verb[] {
  return VERBS.filter(({ under }) => under === group);
}

/** Of a word that no verb has: the one in a group that it means as well. */
export function alsoCalled(word: string): { readonly path: string; readonly leaf: Leaf } | undefined {
  for (const verb of VERBS.filter(isBranch)) {
    const leaf = verb.subverbs.find(({ also }) => also === word);
    if (leaf !== undefined) return { path: `${verb.name} ${leaf.name}`, leaf };
  }
  return undefined;
}

/** All that may be typed first. */
export function firstWords(): readonly string[] {
  return VERBS.flatMap((verb) => [verb.name, ...(isBranch(verb) ? verb.subverbs.flatMap(({ also }) => also ?? []) : [])]);
}
