// The names of the environment's variables, apart from what they mean: every command looks whether one is misspelt, and
// reading the whole schema for that would cost more than most commands do. A test compares the two.
import { HutchError } from '../domain/errors.ts';
import { nearest } from '../domain/nearest.ts';
import type { Environment } from './places.ts';

/** One for each setting. */
export const VARIABLES: readonly string[] = [
  'HUTCH_DAEMON_LISTEN',
  'HUTCH_DAEMON_SOCKET',
  'HUTCH_DAEMON_ALLOWED_HOSTS',
  'HUTCH_DAEMON_ALLOWED_ORIGINS',
  'HUTCH_DAEMON_PREVIEW_DOMAIN',
  'HUTCH_DAEMON_LOG_LEVEL',
  'HUTCH_SANDBOX_IMAGE',
  'HUTCH_SANDBOX_CPUS',
  'HUTCH_SANDBOX_MEMORY',
  'HUTCH_SANDBOX_DISK',
  'HUTCH_SANDBOX_TIMEOUT',
  'HUTCH_SANDBOX_IDLE',
  'HUTCH_SANDBOX_STOP_GRACE',
  'HUTCH_SANDBOX_NETWORK',
  'HUTCH_SANDBOX_FILE_SYNC',
  'HUTCH_SANDBOX_WARM',
  'HUTCH_SANDBOX_BACKEND',
  'HUTCH_IMAGES_INSECURE_REGISTRIES',
  'HUTCH_IMAGES_CA',
  'HUTCH_IMAGES_REGISTRY_CA',
  'HUTCH_IMAGES_MIRRORS',
  'HUTCH_IMAGES_ALLOW',
  'HUTCH_IMAGES_REQUIRE_DIGEST',
  'HUTCH_IMAGES_SIGNED',
  'HUTCH_VOLUMES_ALLOW',
  'HUTCH_DEVICES_ALLOW',
  'HUTCH_BUILDS_PACKAGE_SETTINGS',
  'HUTCH_NETWORK_ALLOW_QEMU_USER_NETWORK',
  'HUTCH_ROLES_VM',
  'HUTCH_ROLES_VM_KEY',
  'HUTCH_LIMITS_SANDBOXES',
  'HUTCH_LIMITS_CPUS',
  'HUTCH_LIMITS_MEMORY',
  'HUTCH_LIMITS_DISK',
  'HUTCH_LIMITS_FREE',
  'HUTCH_RETENTION_EVENTS',
  'HUTCH_RETENTION_OPERATIONS',
  'HUTCH_RETENTION_DELETED',
  'HUTCH_RETENTION_TEMPLATES',
  'HUTCH_RETENTION_CACHE',
  'HUTCH_RETENTION_CACHE_SIZE',
];

/** HUTCH_ names that are no configuration: places, credentials, what children of a fork are told, and what belongs to tests. */
const OTHER_VARIABLES = /^HUTCH_(HOME|FORK_INDEX|API_KEY|API_URL|NO_START|DEBUG|READONLY|(TEST|FUZZ|DEV|LAB|BENCH|AGENT|SHIM)_\w+)$/;

/** @throws HutchError `invalid_argument`: a variable that is no setting is misspelt, and must not be ignored. */
export function refuseUnknownVariables(env: Environment): void {
  for (const [name, value] of Object.entries(env)) {
    if (!name.startsWith('HUTCH_') || value === undefined || VARIABLES.includes(name) || OTHER_VARIABLES.test(name)) continue;
    const meant = nearest(name, VARIABLES) ?? VARIABLES.find((known) => known.endsWith(name.slice('HUTCH'.length)));
    throw new HutchError({
      code: 'invalid_argument',
      message: `${name}: there is no such setting`,
      hint: meant === undefined ? 'unset it; see all settings: hutch config show' : `did you mean ${meant}?`,
    });
  }
}
