// An operation for tests: a fresh id, a silent log, and whatever else the test wants to choose.
import { randomBytes } from 'node:crypto';
import { newOpId } from '../../src/domain/ids.ts';
import { newOperation, type Operation, type OperationOptions } from '../../src/host/operation.ts';

const SILENT = { debug() {}, info() {}, warn() {}, error() {} };

export function testOperation(options: Partial<OperationOptions> = {}): Operation {
  return newOperation({ id: newOpId(randomBytes), actor: 'daemon', log: SILENT, ...options });
}
