// Which template is meant.
import type { ProjectId } from '../../domain/ids.ts';
import { requireReference } from '../../domain/reference.ts';
import type { Template } from '../../domain/template.ts';
import type { Core } from '../core.ts';

/** By id, name, or a unique prefix of either. */
export async function findTemplate(core: Pick<Core, 'deps'>, projectId: ProjectId, text: string): Promise<Template> {
  return requireReference('template', text, await core.deps.store.query('templates', { projectId }));
}
