// How a user's own shell is begun in a sandbox: the agent sets SHELL from the sandbox's /etc/passwd.

// biome-ignore lint/suspicious/noTemplateCurlyInString: the sandbox's shell expands it, not we
const OWN = 'exec "${SHELL:-/bin/sh}"';

/** The login shell. */
export const LOGIN_SHELL = ['/bin/sh', '-c', `${OWN} -l`] as const;
/** A line for that shell: it comes as the next argument. */
export const SHELL_LINE = ['/bin/sh', '-c', `${OWN} -c "$0"`] as const;
