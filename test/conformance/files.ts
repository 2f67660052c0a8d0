// Files of a sandbox over the API: what is written is what its processes see, and the other way round.
import { randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { codeOf, type Subject } from './subject.ts';

export function files(subject: Subject): void {
  const { daemon } = subject;
  const url = async (what: string, query: Record<string, string>) =>
    `/v1/sandboxes/${await subject.box()}/${what}?${new URLSearchParams(query)}`;
  const get = async (path: string, more: Record<string, string> = {}) =>
    (await daemon.send('GET', await url('files', { path, ...more }))).body;
  const put = async (path: string, body: string | Uint8Array, more: Record<string, string> = {}) => {
    const { status } = await daemon.send('PUT', await url('files', { path, ...more }), { body });
    return status;
  };

  test('files: written over the API, read by a process, and the other way round', async () => {
    const bytes = randomBytes(700_000);
    expect(await put('/tmp/f/data', bytes, { mkdirs: 'true', mode: '384' })).toBe(200);
    const sum = (await subject.sh(await subject.box(), 'sha256sum < /tmp/f/data; stat -c "%a %s %u" /tmp/f/data')).split('\n');
    expect(sum[1]).toBe('600 700000 0');
    expect((await get('/tmp/f/data')).equals(bytes)).toBe(true);
    expect((await get('/tmp/f/data', { offset: '1000', length: '10' })).equals(bytes.subarray(1000, 1010))).toBe(true);
    await subject.sh(await subject.box(), 'printf made > /tmp/f/made; chmod 640 /tmp/f/made; chown 1000:1000 /tmp/f/made');
    expect((await get('/tmp/f/made')).toString()).toBe('made');
    expect(await daemon.call('file.stat', { ref: await subject.box(), path: '/tmp/f/made' })).toMatchObject({
      ...{ type: 'file', size: 4, mode: 0o640, uid: 1000, gid: 1000 },
    });
  });

  test('files: names with newlines, quotes and other bytes pass', async () => {
    const names = ['new\nline', 'quo"te\'s', 'späß', '-rf', 'a'.repeat(200)];
    for (const name of names) expect(await put(`/tmp/names/${name}`, name, { mkdirs: 'true' })).toBe(200);
    const found: string[] = [];
    for await (const entry of daemon.lines('file.list', { ref: await subject.box(), path: '/tmp/names' })) found.push(entry.name);
    expect(found.sort()).toEqual([...names].sort());
  });

  test('files: directories, links, modes, owners and sizes', async () => {
    const ref = await subject.box();
    expect(await daemon.call('file.mkdir', { ref, path: '/tmp/a/b/c', parents: true })).toMatchObject({ type: 'dir' });
    expect(await daemon.call('file.symlink', { ref, path: '/tmp/a/link', target: 'b/c' })).toMatchObject({
      type: 'symlink',
      target: 'b/c',
    });
    await put('/tmp/a/file', '12345');
    expect(await daemon.call('file.chmod', { ref, path: '/tmp/a/file', mode: 0o640 })).toMatchObject({ mode: 0o640 });
    expect(await daemon.call('file.chown', { ref, path: '/tmp/a/file', owner: '1000:1000' })).toMatchObject({ uid: 1000, gid: 1000 });
    expect(await daemon.call('file.truncate', { ref, path: '/tmp/a/file', size: 2 })).toMatchObject({ size: 2 });
    expect(await daemon.call('file.rename', { ref, from: '/tmp/a/file', to: '/tmp/a/other' })).toMatchObject({ name: 'other' });
    expect(await subject.sh(ref, 'cat /tmp/a/other; cd /tmp/a && find . | sort; stat -c "%a %u:%g" other; readlink link')).toBe(
      '12.\n./b\n./b/c\n./link\n./other\n640 1000:1000\nb/c\n',
    );
    await daemon.call('file.remove', { ref, path: '/tmp/a', recursive: true });
    expect(await codeOf(daemon.call('file.stat', { ref, path: '/tmp/a' }))).toBe('not_found');
  });

  test('files: what cannot be done is refused by its code', async () => {
    const ref = await subject.box();
    await daemon.call('file.mkdir', { ref, path: '/tmp/full/of', parents: true });
    expect(await codeOf(daemon.call('file.stat', { ref, path: '/nowhere' }))).toBe('not_found');
    expect(await codeOf(daemon.call('file.remove', { ref, path: '/tmp/full' }))).toBe('conflict');
    expect(await codeOf(daemon.call('file.mkdir', { ref, path: '/tmp/full' }))).toBe('conflict');
    expect(await put('/etc/passwd', 'x', { user: '1000:1000' })).toBe(403);
    expect(await put('/tmp/full', 'x')).toBeGreaterThanOrEqual(400);
  });

  test('files: who is named reaches them as itself, and root is root again afterwards', async () => {
    const ref = await subject.box();
    await subject.sh(
      ref,
      'mkdir -p /tmp/own && chown 1000:1000 /tmp/own && chmod 700 /tmp/own && printf hers > /tmp/own/theirs && chmod 600 /tmp/own/theirs',
    );
    const user = '1000:1000';
    expect(await put('/tmp/own/mine', 'mine', { user })).toBe(200);
    await daemon.call('file.mkdir', { ref, path: '/tmp/own/dir', user });
    const packed = await daemon.send('GET', await url('archive', { path: '/tmp/own/mine', user }));
    expect((await daemon.send('PUT', await url('archive', { path: '/tmp/own/dir', user }), { body: packed.body })).status).toBe(200);
    expect((await get('/tmp/own/mine', { user })).toString()).toBe('mine');
    expect((await daemon.send('GET', await url('files', { path: '/tmp/own/theirs', user }))).status).toBe(403);
    expect(await codeOf(daemon.call('file.remove', { ref, path: '/etc/hostname', user }))).toBe('permission_denied');
    // As many as there are threads that work on files, and more.
    await Promise.all(Array.from({ length: 20 }, async (_, nth) => expect(await put(`/root/as-root-${nth}`, 'x')).toBe(200)));
    expect(await subject.sh(ref, 'cd /tmp/own && stat -c "%u:%g" mine dir dir/mine; stat -c "%u:%g" /root/as-root-* | sort -u')).toBe(
      '1000:1000\n1000:1000\n1000:1000\n0:0\n',
    );
  });

  test('files: a tree goes out as an archive and comes back the same', async () => {
    const ref = await subject.box();
    await subject.sh(
      ref,
      'mkdir -p /tmp/tree/sub && echo one > /tmp/tree/1 && echo two > /tmp/tree/sub/2 && chmod 700 /tmp/tree/sub && ln -s 1 /tmp/tree/link',
    );
    const packed = await daemon.send('GET', await url('archive', { path: '/tmp/tree' }));
    expect(packed.status).toBe(200);
    expect((await daemon.send('PUT', await url('archive', { path: '/tmp/copy', mkdirs: 'true' }), { body: packed.body })).status).toBe(200);
    expect(await subject.sh(ref, 'cd /tmp/copy; cat 1 sub/2 link; stat -c %a sub')).toBe('one\ntwo\none\n700\n');
  });

  test('files: a watch hears of what processes do', async () => {
    const ref = await subject.box();
    await subject.sh(ref, 'mkdir -p /tmp/watched');
    const gone = new AbortController();
    const seen: string[] = [];
    const watching = (async () => {
      for await (const change of daemon.lines('file.watch', { ref, path: '/tmp/watched' }, { signal: gone.signal }))
        seen.push(`${change.kind} ${change.path}`);
    })().catch(() => {});
    // The answer begins when the watch stands; a client sees that by the first change it makes.
    await eventually('a change is heard', async () => {
      await subject.sh(ref, 'rm -f /tmp/watched/x; echo > /tmp/watched/x');
      return seen.some((line) => /^create .*x$/.test(line));
    });
    gone.abort();
    await watching;
  });
}
