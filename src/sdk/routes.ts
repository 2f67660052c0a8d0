// Made from the verb table by scripts/generate-sdk-routes.ts: do not edit.

export type Route = {
  readonly kind: 'unary' | 'lines' | 'socket' | 'download' | 'upload';
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  /** `{name}` stands for a member of the input. */
  readonly path: string;
  readonly idempotent: boolean;
  readonly reads: boolean;
};

export const routes = {
  'sandbox.create': { kind: 'unary', method: 'POST', path: '/v1/sandboxes', idempotent: false, reads: false },
  'sandbox.list': { kind: 'unary', method: 'GET', path: '/v1/sandboxes', idempotent: true, reads: true },
  'sandbox.get': { kind: 'unary', method: 'GET', path: '/v1/sandboxes/{ref}', idempotent: true, reads: true },
  'sandbox.start': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/start', idempotent: true, reads: false },
  'sandbox.stop': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/stop', idempotent: true, reads: false },
  'sandbox.restart': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/restart', idempotent: false, reads: false },
  'sandbox.pause': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/pause', idempotent: true, reads: false },
  'sandbox.resume': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/resume', idempotent: true, reads: false },
  'sandbox.rename': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/rename', idempotent: true, reads: false },
  'sandbox.delete': { kind: 'unary', method: 'DELETE', path: '/v1/sandboxes/{ref}', idempotent: true, reads: false },
  'sandbox.wait': { kind: 'unary', method: 'GET', path: '/v1/sandboxes/{ref}/wait', idempotent: true, reads: true },
  'sandbox.stats': { kind: 'unary', method: 'GET', path: '/v1/sandboxes/{ref}/stats', idempotent: true, reads: true },
  'sandbox.logs': { kind: 'download', method: 'GET', path: '/v1/sandboxes/{ref}/logs', idempotent: true, reads: true },
  'exec.start': { kind: 'socket', method: 'GET', path: '/v1/sandboxes/{ref}/exec', idempotent: false, reads: false },
  'exec.attach': { kind: 'socket', method: 'GET', path: '/v1/sandboxes/{ref}/execs/{execId}/attach', idempotent: true, reads: false },
  'exec.list': { kind: 'unary', method: 'GET', path: '/v1/sandboxes/{ref}/execs', idempotent: true, reads: true },
  'exec.signal': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/execs/{execId}/signal', idempotent: false, reads: false },
  'port.list': { kind: 'unary', method: 'GET', path: '/v1/sandboxes/{ref}/ports', idempotent: true, reads: true },
  'port.connect': { kind: 'socket', method: 'GET', path: '/v1/sandboxes/{ref}/connect', idempotent: false, reads: false },
  'file.read': { kind: 'download', method: 'GET', path: '/v1/sandboxes/{ref}/files', idempotent: true, reads: true },
  'file.write': { kind: 'upload', method: 'PUT', path: '/v1/sandboxes/{ref}/files', idempotent: true, reads: false },
  'file.stat': { kind: 'unary', method: 'GET', path: '/v1/sandboxes/{ref}/files/stat', idempotent: true, reads: true },
  'file.list': { kind: 'lines', method: 'GET', path: '/v1/sandboxes/{ref}/files/list', idempotent: true, reads: true },
  'file.mkdir': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/files/mkdir', idempotent: false, reads: false },
  'file.rename': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/files/rename', idempotent: false, reads: false },
  'file.remove': { kind: 'unary', method: 'DELETE', path: '/v1/sandboxes/{ref}/files', idempotent: false, reads: false },
  'file.chmod': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/files/chmod', idempotent: true, reads: false },
  'file.chown': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/files/chown', idempotent: true, reads: false },
  'file.symlink': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/files/symlink', idempotent: false, reads: false },
  'file.truncate': { kind: 'unary', method: 'POST', path: '/v1/sandboxes/{ref}/files/truncate', idempotent: true, reads: false },
  'file.watch': { kind: 'lines', method: 'GET', path: '/v1/sandboxes/{ref}/files/watch', idempotent: true, reads: true },
  'archive.get': { kind: 'download', method: 'GET', path: '/v1/sandboxes/{ref}/archive', idempotent: true, reads: true },
  'archive.put': { kind: 'upload', method: 'PUT', path: '/v1/sandboxes/{ref}/archive', idempotent: true, reads: false },
  'event.list': { kind: 'lines', method: 'GET', path: '/v1/events', idempotent: true, reads: true },
  'operation.list': { kind: 'unary', method: 'GET', path: '/v1/operations', idempotent: true, reads: true },
  'operation.get': { kind: 'unary', method: 'GET', path: '/v1/operations/{opId}', idempotent: true, reads: true },
  'operation.cancel': { kind: 'unary', method: 'POST', path: '/v1/operations/{opId}/cancel', idempotent: true, reads: false },
  'why.get': { kind: 'unary', method: 'GET', path: '/v1/why/{ref}', idempotent: true, reads: true },
  'ledger.list': { kind: 'lines', method: 'GET', path: '/v1/ledger', idempotent: true, reads: true },
  'ledger.verify': { kind: 'unary', method: 'GET', path: '/v1/ledger/verify', idempotent: true, reads: true },
  'key.create': { kind: 'unary', method: 'POST', path: '/v1/keys', idempotent: false, reads: false },
  'key.list': { kind: 'unary', method: 'GET', path: '/v1/keys', idempotent: true, reads: true },
  'key.revoke': { kind: 'unary', method: 'DELETE', path: '/v1/keys/{ref}', idempotent: true, reads: false },
  'config.get': { kind: 'unary', method: 'GET', path: '/v1/config', idempotent: true, reads: true },
  'backends.list': { kind: 'unary', method: 'GET', path: '/v1/backends', idempotent: true, reads: true },
  'doctor.check': { kind: 'unary', method: 'GET', path: '/v1/doctor', idempotent: true, reads: true },
  'doctor.leaks': { kind: 'unary', method: 'GET', path: '/v1/doctor/leaks', idempotent: true, reads: true },
  'daemon.version': { kind: 'unary', method: 'GET', path: '/v1/version', idempotent: true, reads: true },
  'daemon.stop': { kind: 'unary', method: 'POST', path: '/v1/daemon/stop', idempotent: true, reads: false },
} as const satisfies Record<string, Route>;
