// A file from an address that somebody wrote into a Dockerfile. Always true: it comes from where a sandbox may reach, so that no build
// makes the daemon its hands in the network around it.
import type { Host, HttpAnswer } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { nearnessOf, PRIVATE, PUBLIC } from './address.ts';
import { hurried, PATIENCE } from './patience.ts';

const REDIRECTS_MAX = 10;
const IDLE_MS = 60_000;
const HEAD_MS = 5 * 60_000;

export type Fetching = {
  readonly host: Host;
  /** Certificates, in PEM, that are trusted beside the well-known ones; '': none. */
  readonly trusted: string;
  readonly proxy: Readonly<Record<string, string>>;
};

/** `lan`: also from private addresses. @throws HutchError `unavailable`, `failed_precondition`, `permission_denied`. */
export async function fetchFile(
  op: Operation,
  { host, trusted, proxy }: Fetching,
  from: URL,
  { lan }: { readonly lan: boolean },
): Promise<HttpAnswer> {
  let url = from;
  for (let count = 0; count <= REDIRECTS_MAX; count += 1) {
    const answer = await host.request(op, {
      ...{ method: 'GET', url, headers: { 'User-Agent': 'hutch', Accept: '*/*' }, proxy, idleMs: IDLE_MS, headMs: HEAD_MS },
      ...(trusted === '' ? {} : { trusted }),
      mayConnect: (address) => nearnessOf(address) <= (lan ? PRIVATE : PUBLIC),
    });
    if (answer.status === 200) return hurried(op, host, answer, url.host, PATIENCE);
    using _done = answer;
    const { location } = answer.headers;
    if (![301, 302, 303, 307, 308].includes(answer.status) || location === undefined) {
      throw op.error(answer.status >= 500 ? 'unavailable' : 'failed_precondition', `${url.host} answered ${answer.status}`);
    }
    const next = URL.parse(location, url.href);
    const isAsSafe = next?.protocol === 'https:' || (next?.protocol === 'http:' && url.protocol === 'http:');
    if (next === null || !isAsSafe)
      throw op.error('failed_precondition', `${url.host} redirects to an address that is not followed: ${location.slice(0, 200)}`);
    url = next;
  }
  throw op.error('failed_precondition', `${from.host} redirects more than ${REDIRECTS_MAX} times`);
}
