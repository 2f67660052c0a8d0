// The real Host: what the daemon runs on. Nothing here decides anything; each part is in its file.
import { homedir } from 'node:os';
import { asides } from './aside.ts';
import { borrowFile } from './borrow.ts';
import { clock } from './clock.ts';
import { cloneFile } from './copy.ts';
import * as files from './files.ts';
import type { Host } from './host.ts';
import { request } from './http.ts';
import { openInside } from './inside.ts';
import { listenUnix } from './listen.ts';
import { lockFile } from './lock.ts';
import { isAlive, kill, processRef, processTraffic, processUse, which } from './proc.ts';
import { connectProgram } from './program-stream.ts';
import { receiveUnix } from './receive.ts';
import { type RunProgram, run, spawnDetached } from './run.ts';
import { connectUnix } from './sockets.ts';
import { writeSparse } from './sparse.ts';
import { connectTcp, listenTcp } from './tcp.ts';
import { watchDir } from './watch.ts';

const SEARCH_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

export type NodeHostOptions = {
  /** Added to the little that every program gets; our own environment may hold keys and is never passed on. */
  readonly env?: Readonly<Record<string, string>>;
};

export function nodeHost(options: NodeHostOptions = {}): Host {
  const env = { PATH: SEARCH_PATH, HOME: homedir(), LANG: 'C.UTF-8', ...options.env };
  const runHere: RunProgram = (op, argv, runOptions) => run(op, env, argv, runOptions);
  return {
    readFile: files.readFile,
    writeFileAtomic: files.writeFileAtomic,
    appendFile: files.appendFile,
    appendStream: files.appendStream,
    writeAt: files.writeAt,
    readRange: files.readRange,
    readStream: files.readStream,
    stat: files.stat,
    readLink: files.readLink,
    realPath: files.realPath,
    list: files.list,
    makeDir: files.makeDir,
    remove: files.remove,
    removeEmptyDir: files.removeEmptyDir,
    rename: files.rename,
    link: files.link,
    symlink: files.symlink,
    chmod: files.chmod,
    chown: files.chown,
    truncate: files.truncate,
    cloneFile: (op, from, to) => cloneFile(op, runHere, from, to),
    writeSparse,
    borrowFile,
    openInside,
    sync: files.sync,
    fileSystem: files.fileSystem,
    sha256: files.sha256,
    aside: asides(),
    watchDir,
    lockFile: (op, path) => lockFile(op, env, path),

    run: runHere,
    spawnDetached: (op, argv, spawnOptions) => spawnDetached(op, env, argv, spawnOptions),
    processRef,
    isAlive,
    kill,
    processUse,
    processTraffic,
    which: (op, program, path) => which(op, path === undefined ? env.PATH : `${path}:${env.PATH}`, program),
    connectProgram: (op, argv, own) => connectProgram(op, argv, { ...env, ...own }),

    connectUnix,
    receiveUnix,
    listenUnix,
    request,
    connectTcp,
    listenTcp,

    ...clock(),
    uid: process.getuid?.() ?? 0,
    gid: process.getgid?.() ?? 0,
  };
}
