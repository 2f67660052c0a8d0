// How `tar2sqfs` packs a root file system: LZ4 in blocks of 64 KiB, docs/decisions/0005-image-file-system.md.

export const PACK_OPTIONS = ['--quiet', '--force', '--no-skip', '--compressor=lz4', '--block-size=65536'];
