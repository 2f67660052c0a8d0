import { conformance } from './suite.ts';

await conformance('docker');
