// The one way in which rules of this machine are asked for and changed: the program nft.
import type { Host, RunResult } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

const NFT_MS = 10_000;

/** Deaf to its caller's cancellation: others may wait for the same transaction. */
export async function runNft(op: Operation, host: Host, args: readonly string[], input = ''): Promise<RunResult> {
  using limited = op.releasing(NFT_MS);
  return await host.run(limited, [(await host.which(limited, 'nft')) ?? 'nft', ...args], { input: new TextEncoder().encode(input) });
}

/** Carries out one transaction; gives what was wrong with it, empty when it was done. */
export async function transact(op: Operation, host: Host, script: string): Promise<string> {
  const { exitCode, stderr } = await runNft(op, host, ['-f', '-'], script);
  return exitCode === 0 ? '' : new TextDecoder().decode(stderr).trim() || `nft ended with ${exitCode}`;
}
