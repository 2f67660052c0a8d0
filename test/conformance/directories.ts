// Directories of this machine in a sandbox, on every backend that shows them.
import { createHash } from 'node:crypto';
import { mkdirSync, renameSync, symlinkSync, unlinkSync, watch, writeFileSync } from 'node:fs';
import { appendFile, lstat, mkdir, readdir, readFile, readlink, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { refusal, type Subject } from './subject.ts';

/** Does in its directory what programs do with files; ends with 0 when all of it was so. */
const FILES = String.raw`import errno, hashlib, mmap, os, stat, sys
here = sys.argv[1]; os.chdir(here)
def fails(what, *codes):
    try: what()
    except OSError as error: assert error.errno in codes, error
    else: raise AssertionError(f'no {codes}')
def put(path, data):
    with open(path, 'wb') as file: file.write(data)
def get(path):
    with open(path, 'rb') as file: return file.read()
for name in (b'line\nbreak', b'not-utf8-\xff\xfe', b' lead', b'x' * 255): put(name, name)
assert set(os.listdir(b'.')) >= {b'line\nbreak', b'not-utf8-\xff\xfe', b' lead', b'x' * 255}
fails(lambda: put('y' * 256, b''), errno.ENAMETOOLONG)
big = hashlib.sha256(b'seed').digest() * 131072 + b'end'
put('big', big); assert get('big') == big
with open('big', 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as seen: assert seen[-3:] == b'end' and seen[:32] == big[:32]
fd = os.open('log', os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o640)
for part in (b'one ', b'two ', b'three'): os.write(fd, part)
os.fsync(fd); os.close(fd); assert get('log') == b'one two three'
os.truncate('log', 3); assert get('log') == b'one'
fd = os.open('hole', os.O_CREAT | os.O_RDWR, 0o600); os.pwrite(fd, b'z', 1 << 20); assert os.fstat(fd).st_size == (1 << 20) + 1; os.close(fd)
fails(lambda: os.open('log', os.O_CREAT | os.O_EXCL), errno.EEXIST)
os.mkdir('tree'); os.mkdir('tree/sub', 0o750); fails(lambda: os.mkdir('tree'), errno.EEXIST); fails(lambda: os.rmdir('tree'), errno.ENOTEMPTY)
put('tree/sub/leaf', b'leaf'); os.rename('tree', 'wood'); assert get('wood/sub/leaf') == b'leaf'; fails(lambda: get('tree/sub/leaf'), errno.ENOENT)
put('old', b'old'); put('new', b'new'); os.rename('new', 'old'); assert get('old') == b'new'; fails(lambda: os.stat('new'), errno.ENOENT)
os.link('old', 'twin'); assert os.stat('twin').st_nlink == 2 and os.stat('twin').st_ino == os.stat('old').st_ino
with open('twin', 'ab') as file: file.write(b'er')
assert get('old') == b'newer'
os.symlink('wood/sub/leaf', 'short'); os.symlink('/nowhere/at/all', 'broken'); assert get('short') == b'leaf' and os.readlink('broken') == '/nowhere/at/all'
os.chmod('old', 0o640); os.utime('old', ns=(1_000_000_001, 2_000_000_002)); assert os.stat('old').st_mtime_ns == 2_000_000_002
with open('gone', 'w+b') as file:
    os.unlink('gone'); file.write(b'still there'); file.flush(); file.seek(0); assert file.read() == b'still there'
assert not os.path.exists('gone')
os.mkdir('many')
for at in range(150): os.close(os.open(f'many/{at}', os.O_CREAT | os.O_WRONLY, 0o644))
assert sorted(os.listdir('many'), key=int) == [str(at) for at in range(150)]
before = os.stat('many').st_mtime_ns; os.unlink('many/0'); assert os.stat('many').st_mtime_ns >= before and len(os.listdir('many')) == 149
os.mkfifo('pipe'); assert stat.S_ISFIFO(os.stat('pipe').st_mode)
assert os.statvfs('.').f_bsize > 0
dirfd = os.open('.', os.O_RDONLY); os.fsync(dirfd); os.close(dirfd)
`;

export function directories(subject: Subject): void {
  const { daemon, can } = subject;

  // Not claimed, they are refused by name (honesty.ts); the reference has them by symlinks of its own.
  if (!can.hostDirectories || subject.name === 'reference') return;

  /** A directory here, and a sandbox that has it at `/srv/dir`. */
  async function shown(name: string): Promise<{ readonly dir: string; readonly id: string }> {
    const dir = join(subject.home, name);
    await mkdir(dir);
    const { id } = await subject.make({ mounts: [{ source: dir, target: '/srv/dir' }] });
    return { dir, id };
  }

  test('directories: what programs do with files they can do there, and what it comes to is the same on both sides', {
    timeout: 300_000,
  }, async (here) => {
    const { dir, id } = await shown('used');
    if ((await daemon.run(id, ['python3', '-c', ''])).exitCode !== 0) return here.skip('the image has no Python');
    const { exitCode, stderr } = await daemon.run(id, ['python3', '-c', FILES, '/srv/dir']);
    expect([stderr, exitCode]).toEqual(['', 0]);
    const names = (await readdir(dir, { encoding: 'buffer' })).map((name) => name.toString('latin1'));
    expect(names).toEqual(expect.arrayContaining(['line\nbreak', 'not-utf8-\xff\xfe', ' lead', 'x'.repeat(255)]));
    const seed = createHash('sha256').update('seed').digest();
    const big = await readFile(join(dir, 'big'));
    expect(big.equals(Buffer.concat([...Array.from({ length: 131_072 }, () => seed), Buffer.from('end')]))).toBe(true);
    const old = await lstat(join(dir, 'old'), { bigint: true });
    expect([old.mode & 0o7777n, old.nlink, old.mtimeNs]).toEqual([0o640n, 2n, 2_000_000_002n]);
    expect(await readFile(join(dir, 'wood/sub/leaf'), 'utf8')).toBe('leaf');
    expect((await lstat(join(dir, 'wood/sub'))).mode & 0o777).toBe(0o750);
    expect(await readlink(join(dir, 'broken'))).toBe('/nowhere/at/all');
    expect((await readdir(join(dir, 'many'))).length).toBe(149);
    await subject.remove(id);
  });

  test('directories: what is changed here, the next command sees', { timeout: 300_000 }, async () => {
    const { dir, id } = await shown('changed');
    await writeFile(join(dir, 'note'), '0');
    for (let round = 1; round <= 3; round += 1) {
      // Looked at just now, all of it: what is there, and what is not.
      expect(await subject.sh(id, 'cd /srv/dir; cat note; cat later 2>/dev/null; ls | wc -l')).toBe(`${round - 1}1\n`);
      await writeFile(join(dir, 'note'), `${round}`);
      await writeFile(join(dir, 'later'), 'later');
      expect(await subject.sh(id, 'cd /srv/dir; cat note later')).toBe(`${round}later`);
      await rm(join(dir, 'later'));
    }
    // Both write to the end of it.
    await subject.sh(id, 'echo in >> /srv/dir/both');
    await appendFile(join(dir, 'both'), 'here\n');
    await subject.sh(id, 'echo again >> /srv/dir/both');
    expect(await readFile(join(dir, 'both'), 'utf8')).toBe('in\nhere\nagain\n');
    await subject.remove(id);
  });

  test('directories: a symlink leads where it leads inside, and one that is gone says so', { timeout: 300_000 }, async () => {
    const { dir, id } = await shown('linked');
    await writeFile(join(subject.home, 'beside'), 'of this machine');
    await symlink('../beside', join(dir, 'up'));
    await symlink('/etc/hostname', join(dir, 'absolute'));
    await symlink(join(subject.home, 'beside'), join(dir, 'here'));
    expect(await subject.sh(id, 'cd /srv/dir; cat up here 2>/dev/null; cat absolute /etc/hostname | uniq | wc -l')).toBe('1\n');
    await rename(dir, `${dir}.away`);
    await rm(`${dir}.away`, { recursive: true });
    const said = await subject.sh(id, 'cd /; (echo x > /srv/dir/new) 2>&1; cat /srv/dir/up 2>&1; ls /srv/dir/nothing 2>&1; echo done');
    expect(said).toMatch(/^(?:.*(?:No such file|Stale|not exist|nonexistent|Permission|Input).*\n)+done\n$/i);
    await subject.remove(id);
  });

  test('directories: a daemon that is killed and started again leaves them as they are', { timeout: 300_000 }, async () => {
    const { dir, id } = await shown('outliving');
    await daemon.kill9();
    await daemon.startAgain();
    expect(await subject.sh(id, 'echo yes > /srv/dir/after; cat /srv/dir/after')).toBe('yes\n');
    expect(await readFile(join(dir, 'after'), 'utf8')).toBe('yes\n');
    await daemon.call('sandbox.pause', { ref: id });
    await writeFile(join(dir, 'after'), 'meanwhile');
    await daemon.call('sandbox.resume', { ref: id });
    expect(await subject.sh(id, 'cat /srv/dir/after')).toBe('meanwhile');
    if (subject.name === 'qemu') await servedAnew(id, dir);
    await subject.remove(id);
  });

  /** Elsewhere no process stands between. */
  async function servedAnew(id: string, dir: string): Promise<void> {
    const isServer = /^process (\d+): \S+\/hutch-files .* (\S+) $/;
    const [pid = 0] = (await daemon.processes()).flatMap((line) => {
      const [, found, served] = isServer.exec(line) ?? [];
      return served === dir ? [Number(found)] : [];
    });
    // Whatever it takes is the sandbox's.
    if (process.getuid?.() === 0) expect(await readFile(`/proc/${pid}/cgroup`, 'utf8')).toContain(id);
    process.kill(pid, 'SIGKILL');
    await eventually('the guest is told', async () => /not connected/.test(await subject.sh(id, 'ls /srv/dir 2>&1; true')));
    expect((await subject.get(id)).state).toBe('running');
    expect(await subject.sh(id, '(echo x > /srv/dir/y) 2>&1 | grep -c "not connected"')).toBe('1\n');
    await daemon.call('sandbox.restart', { ref: id });
    expect(await subject.sh(id, 'cat /srv/dir/after')).toBe('meanwhile');
  }

  test('directories: one that is swapped for a symlink while its sandbox starts is never shown', { timeout: 300_000 }, async () => {
    // Whoever has the directory above it mounted in another sandbox can do this.
    const [dir, away, secret] = ['meant', 'meant.away', 'secret'].map((name) => join(subject.home, `swapped-${name}`)) as [
      string,
      string,
      string,
    ];
    mkdirSync(dir);
    mkdirSync(secret);
    writeFileSync(join(dir, 'meant'), '');
    writeFileSync(join(secret, 'secret'), '');
    const { id } = await subject.make({ name: 'swapped', mounts: [{ source: dir, target: '/srv/swapped' }], start: false });
    let refused = 0;
    for (let round = 0; round < 5 && refused === 0; round += 1) {
      // The path has been looked at before the first file of a start is made, and the mount comes after it.
      let isSwapped = false;
      const watcher = watch(join(subject.home, 'run/sandboxes'), { recursive: true }, () => {
        if (isSwapped) return;
        isSwapped = true;
        renameSync(dir, away);
        symlinkSync(secret, dir);
      });
      try {
        const said = await daemon.call('sandbox.start', { ref: id }).then(
          () => null,
          (error: unknown) => error,
        );
        if (said === null) expect(await subject.sh(id, 'ls /srv/swapped')).toBe('meant\n');
        else {
          expect(await refusal(Promise.reject(said as Error))).toMatchObject({
            code: 'failed_precondition',
            message: expect.stringContaining(`${dir} was replaced while it was mounted`),
            hint: expect.stringContaining('put the directory back'),
          });
          refused += 1;
        }
      } finally {
        watcher.close();
        if (isSwapped) {
          unlinkSync(dir);
          renameSync(away, dir);
        }
      }
      if ((await subject.get(id)).state === 'running') await daemon.call('sandbox.stop', { ref: id, force: true });
    }
    await daemon.call('sandbox.start', { ref: id });
    expect(await subject.sh(id, 'ls /srv/swapped')).toBe('meant\n');
    await subject.remove(id);
  });
}
