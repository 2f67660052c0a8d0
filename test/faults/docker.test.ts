import { badDays } from './bad-days.ts';

await badDays('docker');
