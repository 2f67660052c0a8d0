import { badDays } from './bad-days.ts';
import { diskGrownByNobody } from './changes.ts';
import { isLong } from './world.ts';

// It is the services' own, so QEMU stands for it in a short run.
await badDays('gvisor', isLong ? diskGrownByNobody : undefined);
