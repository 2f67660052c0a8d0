import { badDays } from './bad-days.ts';

await badDays('gvisor');
