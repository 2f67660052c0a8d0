// A connection to the daemon that carries the bytes of SSH and nothing else, to be passed on to another process.
import { request as startRequest } from 'node:http';
import type { Socket } from 'node:net';
import type { Input } from '../services/verbs.ts';
import type { ApiClient, CallOptions } from './client.ts';
import { cancelled, errorFromBody, unreachable } from './errors.ts';
import { jsonBody, opIdOf } from './http.ts';
import { encodeRequest } from './request.ts';
import { routes } from './routes.ts';

const PROTOCOL = 'hutch-bytes';

/** Whether there is such a thing: what goes through TLS is not only the system's. */
export function mayBeBare({ address }: ApiClient): boolean {
  return address.type === 'unix' || !address.tls;
}

/** Paused; the daemon says nothing in it before we have. @throws HutchError as the daemon says, ConnectionError, `cancelled`. */
export async function connectBare(client: ApiClient, input: Input<'ssh.connect'>, options: CallOptions = {}): Promise<Socket> {
  const since = performance.now();
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await connectOnce(client, input, options);
    } catch (error) {
      await client.beforeRetry(error, attempt, since, options.signal);
    }
  }
}

async function connectOnce(client: ApiClient, input: Input<'ssh.connect'>, options: CallOptions): Promise<Socket> {
  const { address } = client;
  const { signal } = options;
  const { method, path } = encodeRequest(routes['ssh.connect'], input);
  const headers = { ...(await client.headers(options)), Connection: 'Upgrade', Upgrade: PROTOCOL };
  const { promise, resolve, reject } = Promise.withResolvers<Socket>();
  const where = address.type === 'unix' ? { socketPath: address.path } : { host: address.host, port: address.port };
  const request = startRequest({ ...where, method, path, headers, agent: false, ...(signal === undefined ? {} : { signal }) });
  request.on('upgrade', (_, socket) => {
    socket.pause();
    resolve(socket as Socket);
  });
  request.on('response', (response) => {
    const context = { status: response.statusCode ?? 0, opId: opIdOf(response) };
    jsonBody(response).then(
      (body) => reject(errorFromBody(body, context)),
      () => reject(errorFromBody(null, context)),
    );
  });
  request.on('error', (cause) => reject(signal?.aborted ? cancelled(signal) : unreachable(address, cause)));
  request.end();
  return await promise;
}
