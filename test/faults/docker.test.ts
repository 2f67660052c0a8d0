import { badDays } from './bad-days.ts';
import { changesCutShort } from './changes.ts';

await badDays('docker', changesCutShort);
