import { warmSandboxes } from './warm-tests.ts';

await warmSandboxes('gvisor');
