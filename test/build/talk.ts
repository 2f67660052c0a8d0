// A context for the Docker Engine of the tests, and questions to it that are no JSON.
import { spawn } from 'node:child_process';
import { request } from 'node:http';
import type { DockerEngine } from '../support/docker-engine.ts';

export async function contextTar(dir: string): Promise<Buffer> {
  const child = spawn('tar', ['-C', dir, '--owner=0', '--group=0', '-c', '.']);
  const pieces: Buffer[] = [];
  for await (const piece of child.stdout) pieces.push(piece as Buffer);
  return Buffer.concat(pieces);
}

export async function talk({ socketPath }: DockerEngine, method: string, path: string, body: Uint8Array | null): Promise<Buffer> {
  return await new Promise((resolve, reject) => {
    const sent = request({ socketPath, method, path: `/v1.41${path}`, headers: { 'Content-Type': 'application/x-tar' } }, (answer) => {
      const pieces: Buffer[] = [];
      answer.on('data', (piece: Buffer) => pieces.push(piece));
      answer.on('end', () => resolve(Buffer.concat(pieces)));
      answer.on('error', reject);
    });
    sent.on('error', reject);
    sent.end(body ?? undefined);
  });
}
