import { readySandboxesOfTemplates } from './template-warm-tests.ts';

await readySandboxesOfTemplates('qemu');
