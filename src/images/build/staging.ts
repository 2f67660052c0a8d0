// The directory in which one build works: what a crash leaves is there, and the next start removes it.
import type { Host } from '../../host/host.ts';
import type { Blobs } from '../blobs.ts';

export type BuildStaging = { readonly host: Host; readonly blobs: Blobs; readonly path: string };
