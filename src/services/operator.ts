// What belongs to all projects, and who may change it: whoever runs this machine, by a key of the project `default`. Of images, which
// lie here once for all, a project may also take away what it alone has brought.
import type { Image } from '../domain/image.ts';
import type { Store } from '../store/contract.ts';
import type { Call } from './call.ts';

type Keeping = Pick<Store, 'query' | 'defaultProjectId'>;

export function isOperator(store: Pick<Store, 'defaultProjectId'>, { caller }: Pick<Call, 'caller'>): boolean {
  return caller.projectId === store.defaultProjectId;
}

/** `what`: such as `quotas are set`. @throws HutchError `permission_denied`. */
export function requireOperator(store: Pick<Store, 'defaultProjectId'>, call: Pick<Call, 'caller' | 'op'>, what: string): void {
  if (!isOperator(store, call)) throw call.op.error('permission_denied', `${what} with a key of the project default`);
}

/** Whether who asks may take it away from whoever has it: no other project has brought it. */
async function mayTakeAway(store: Keeping, call: Pick<Call, 'caller'>, { id }: Pick<Image, 'id'>): Promise<boolean> {
  if (isOperator(store, call)) return true;
  const brought = await store.query('imageProjects', { imageId: id });
  return brought.length === 1 && brought[0] === call.caller.projectId;
}

/** @throws HutchError `permission_denied` where another project has brought it too. */
export async function requireOwnImage(store: Keeping, call: Call, image: Pick<Image, 'id'>): Promise<void> {
  if (await mayTakeAway(store, call, image)) return;
  throw call.op.error('permission_denied', `image ${image.id} is not your project's alone: others may need it`, {
    hint: 'it is removed with a key of the project default',
  });
}

/** Before they are given to another image. A registry may move its own names: this is about what somebody calls something here. */
export async function requireOwnNames(store: Keeping, call: Call, names: readonly string[]): Promise<void> {
  if (names.length === 0 || isOperator(store, call)) return;
  const images = await store.query('images', {});
  for (const name of names) {
    const image = images.find((one) => one.names.includes(name));
    if (image === undefined || (await mayTakeAway(store, call, image))) continue;
    throw call.op.error('permission_denied', `the name ${name} is of image ${image.id}, which is not your project's alone`, {
      hint: 'choose another name',
    });
  }
}
