// An operation of the bench's own, for the parts of Hutch that it calls directly.
import { randomBytes } from 'node:crypto';
import { newOpId } from '../src/domain/ids.ts';
import { newOperation, type Operation, type OperationOptions } from '../src/host/operation.ts';

const SILENT = { debug() {}, info() {}, warn() {}, error() {} };

export function benchOperation(options: Partial<OperationOptions> = {}): Operation {
  return newOperation({ id: newOpId(randomBytes), actor: 'daemon', log: SILENT, ...options });
}
