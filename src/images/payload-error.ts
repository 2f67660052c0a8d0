// What a parser of kernel files says about bytes it cannot use. Whoever knows which package the
// bytes came from makes a HutchError of it.

/** Its message completes "the kernel in PACKAGE is damaged: …". */
export class DamagedPayload extends Error {
  override readonly name = 'DamagedPayload';
}
