import { badDays } from './bad-days.ts';
import { changesCutShort, trialsCutShort } from './changes.ts';

await badDays('docker', (world) => {
  changesCutShort(world);
  trialsCutShort(world);
});
