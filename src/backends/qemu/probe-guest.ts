// The bytes of probe-guest.S, assembled, and the BIOS image around them.

/** From `start` to `end`. */
const CODE = [
  'fa2e660f011608f10f20c06683c8010f22c066ea1af0ffff0800b8100000008ed88ec08ed0be00f0ffffbf00800000b9',
  '14010000f3a4b83d800000ffe031c0bf00100000b9000c0000f3abc7050010000003200000c7050020000003300000c7',
  '050030000083000000b8001000000f22d80f20e00d200600000f22e0b9800000c00f320d000900000f300f20c083e0fb',
  '0d020000800f22c00f01150e810000eaa6800000180031c08ed88ed0bc000001000fa2660f6ec30f3150b9100000000f',
  '325bbf00000200010f81c70010000081ff00001f0072f0b810000000baf4000000eff4ebfd8d74000000000000000000',
  'ffff0000009acf00ffff00000092cf00ffff0000009aaf001f00e8f0ffff1f00e880000000000000',
].join('');
const CODE_AT = 0xf000;
/** A near jump from the reset vector to `start`. */
const RESET = 'e90df0';
const RESET_AT = 0xfff0;
const BIOS_BYTES = 0x10000;

/** What QEMU exits with when the guest has got through. */
export const PROBE_EXIT_CODE = 33;

export function probeBios(): Uint8Array {
  const bios = Buffer.alloc(BIOS_BYTES);
  bios.write(CODE, CODE_AT, 'hex');
  bios.write(RESET, RESET_AT, 'hex');
  return bios;
}
