// Why an Engine cannot be reached, in words that say what to do: which path or group, or whose certificate.
import type { HutchError } from '../../domain/errors.ts';
import { errnoOf } from '../../host/errors.ts';
import type { Operation } from '../../host/operation.ts';
import type { Endpoint } from './endpoint.ts';

export function notReached(op: Operation, endpoint: Exclude<Endpoint, { kind: 'ssh' }>, cause: unknown): HutchError {
  const { source, address } = endpoint;
  const errno = errnoOf(cause);
  const refusal = tlsCode(cause);
  if (refusal !== null) return notTrusted(op, endpoint, refusal, cause);
  if (endpoint.kind === 'tcp') {
    return op.error(
      'unavailable',
      `the Docker Engine does not answer at ${address} (from ${source})${errno === null ? '' : `: ${errno}`}`,
      {
        hint: 'is it started with --host tcp://…, and may this machine reach it?',
        cause,
      },
    );
  }
  const { socketPath } = endpoint;
  if (errno === 'EACCES' || errno === 'EPERM') {
    return op.error('permission_denied', `Docker's socket ${socketPath} is not ours to open`, {
      hint: 'whoever may use it is root on this machine; to be one of them: usermod -aG docker "$USER" && newgrp docker',
      cause,
    });
  }
  const why = errno === 'ENOENT' ? `there is no socket ${socketPath}` : `nobody answers at ${socketPath}`;
  return op.error('unavailable', `the Docker Engine does not run: ${why} (from ${source})`, {
    hint: 'start it, or install it: systemctl start docker || apt-get install docker.io',
    cause,
  });
}

/** OpenSSL's own code behind an error, such as `SELF_SIGNED_CERT_IN_CHAIN`; null where TLS is not what failed. */
export function tlsCode(error: unknown): string | null {
  let at: unknown = error;
  for (let depth = 0; depth < 8 && at instanceof Error; depth += 1) {
    const code: unknown = 'code' in at ? at.code : null;
    if (typeof code === 'string' && /^(ERR_(SSL|TLS|OSSL)_|EPROTO$|CERT_|SELF_SIGNED_|DEPTH_ZERO_|UNABLE_TO_|HOSTNAME_)/.test(code))
      return code;
    at = at.cause;
  }
  return null;
}

export function notTrusted(op: Operation, { address, source }: Endpoint, code: string, cause: unknown): HutchError {
  if (/ALERT|CERTIFICATE_REQUIRED|BAD_CERTIFICATE/.test(code)) {
    return op.error('permission_denied', `the Docker Engine at ${address} does not take our certificate (from ${source}): ${code}`, {
      hint: 'cert.pem and key.pem must be signed by the authority that it trusts',
      cause,
    });
  }
  const isPlain = /WRONG_VERSION|EPROTO|PACKET_LENGTH/.test(code);
  return op.error('failed_precondition', `TLS with the Docker Engine at ${address} fails (from ${source}): ${code}`, {
    hint: isPlain
      ? 'does it speak TLS at that port?'
      : 'ca.pem must be of the authority that signed its certificate, and the certificate of that address',
    cause,
  });
}
