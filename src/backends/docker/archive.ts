// A tar archive of one program, as the Engine's archive API takes it: for an Engine that does not see our files.
const BLOCK_BYTES = 512;

/** `path` without a leading slash, at most 100 bytes; its directory is made too. */
export function programArchive(path: string, content: Uint8Array): Uint8Array {
  const dir = path.slice(0, path.lastIndexOf('/') + 1);
  const padding = new Uint8Array((BLOCK_BYTES - (content.byteLength % BLOCK_BYTES)) % BLOCK_BYTES);
  return Buffer.concat([header(dir, 0, '5'), header(path, content.byteLength, '0'), content, padding, new Uint8Array(2 * BLOCK_BYTES)]);
}

function header(name: string, sizeBytes: number, type: '0' | '5'): Uint8Array {
  const block = Buffer.alloc(BLOCK_BYTES);
  const octal = (value: number, digits: number): string => `${value.toString(8).padStart(digits, '0')}\0`;
  block.write(name, 0, 100, 'utf8');
  block.write(octal(0o755, 7), 100);
  block.write(octal(0, 7), 108); // root
  block.write(octal(0, 7), 116);
  block.write(octal(sizeBytes, 11), 124);
  block.write(octal(0, 11), 136); // 1970: the same bytes each time
  block.write(' '.repeat(8), 148);
  block.write(type, 156);
  block.write('ustar\0', 257);
  block.write('00', 263);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  return block;
}
