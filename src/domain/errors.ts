// The one error type. Every failure a user can meet is a HutchError: a stable code for programs,
// a sentence to act on for people. Anything else that is thrown is a bug and becomes `internal`.

/** Every code, whether trying the same call again can help, and the HTTP status that carries it. */
export const ERROR_CODES = {
  invalid_argument: { httpStatus: 400, retryable: false },
  unauthenticated: { httpStatus: 401, retryable: false },
  permission_denied: { httpStatus: 403, retryable: false },
  not_found: { httpStatus: 404, retryable: false },
  conflict: { httpStatus: 409, retryable: false },
  failed_precondition: { httpStatus: 412, retryable: false },
  payload_too_large: { httpStatus: 413, retryable: false },
  resource_exhausted: { httpStatus: 429, retryable: true },
  cancelled: { httpStatus: 499, retryable: false },
  internal: { httpStatus: 500, retryable: false },
  unimplemented: { httpStatus: 501, retryable: false },
  unavailable: { httpStatus: 503, retryable: true },
  deadline_exceeded: { httpStatus: 504, retryable: true },
} as const satisfies Record<string, { httpStatus: number; retryable: boolean }>;

export type ErrorCode = keyof typeof ERROR_CODES;

/** What travels: the body of every failed API call and of every failed `--json` command. */
export type ErrorBody = {
  readonly code: ErrorCode;
  readonly message: string;
  readonly hint: string | null;
  readonly retryable: boolean;
  readonly opId: string | null;
};

export type ErrorOptions = {
  readonly code: ErrorCode;
  /** What went wrong, as a sentence that a person can act on. */
  readonly message: string;
  /** The next thing to do or type, where there is one. */
  readonly hint?: string;
  readonly opId?: string;
  /** For the log only; never shown to users. */
  readonly cause?: unknown;
};

export class HutchError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | null;
  readonly opId: string | null;

  constructor(options: ErrorOptions) {
    super(options.message, { cause: options.cause });
    this.name = 'HutchError';
    this.code = options.code;
    this.hint = options.hint ?? null;
    this.opId = options.opId ?? null;
  }

  get retryable(): boolean {
    return ERROR_CODES[this.code].retryable;
  }

  toBody(): ErrorBody {
    const { code, message, hint, retryable, opId } = this;
    return { code, message, hint, retryable, opId };
  }
}
