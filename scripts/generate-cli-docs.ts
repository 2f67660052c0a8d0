// Writes docs/cli.md from the CLI's table of verbs and of exit codes; src/cli/table.test.ts holds them together.
import { writeFileSync } from 'node:fs';
import { EXIT_CODES } from '../src/cli/exit-codes.ts';
import { flagText, usageLine } from '../src/cli/help.ts';
import { COMMON_FLAGS, isBranch, type Leaf } from '../src/cli/verb.ts';
import { listedUnder, VERBS } from '../src/cli/verbs.ts';

const INTRODUCTION = `# The command line

Made from the table of verbs by \`scripts/generate-cli-docs.ts\`: change the table, not this file.

A sandbox is named by its id, its name, or a unique beginning of either (at least three characters). Several may stand in one
command: each is tried, a bad one fails alone, and the worst outcome is the exit code.

Results go to stdout. Progress is shown on a terminal, on stderr; elsewhere plain lines there say what is done once and takes long, and now and then how far
that is; with \`--json\` nothing does. Nothing asks a question.

## --json

Every verb takes \`--json\`. Then stdout has one JSON document in the API's own schema (\`/openapi.json\`), or one a line where a
verb streams (\`events\`, \`logs\`, \`ledger\`, \`ls --watch\`, \`exec\`, \`run\`) or was given several references. An error is such a
document too, on stdout, in the place of the result: \`{"code", "message", "hint", "retryable", "opId"}\`; nothing is on stderr.
The exit code tells which of the two it is.

\`run\` and \`exec\` print \`{"type":"started",…}\`, then \`{"type":"stdout"|"stderr","base64":…}\` as output comes, and last
\`{"type":"exit",…}\`. \`logs\` prints \`{"channel","atMs","base64"}\`, and \`{"type":"dropped","bytes"}\` where a reader was so slow that the log was
rotated before it was read.

## Input, Ctrl-C and lost connections

Piped input (a pipe, a file, a socket) is passed on to the command by itself, a terminal's only with \`-i\`; \`--no-stdin\` keeps it
back, as in loops that read theirs. With \`-t\` every key goes to the command, Ctrl-C too; ctrl-p ctrl-q lets go of it. Without
\`-t\`, Ctrl-C passes the signal on, then ends the command (after 5 s, or at the second Ctrl-C), and what was made with \`--rm\` is
deleted; otherwise the CLI says what is left. Any other verb cancels its operation in the daemon and waits until that has cleaned up.

When the daemon ends or is killed, a running command goes on: the CLI starts the daemon again (unless \`HUTCH_NO_START=1\`, or
\`HUTCH_API_URL\` names one elsewhere) and takes up output and input at the byte where they broke off. If that is not possible it
ends with 125 or 7 and says so; it never makes up a code.

When the CLI itself is killed (\`kill -9\`) while it has a terminal, that stays as the command had it: type \`reset\` and Enter, unseen.

## Environment

| variable | meaning |
| --- | --- |
| \`HUTCH_API_URL\` | a daemon elsewhere: \`http://127.0.0.1:4880\`, \`https://…\` or \`unix:/path\` |
| \`HUTCH_API_KEY\` | the key for it; by default the owner's key of this machine's daemon |
| \`HUTCH_HOME\` | where all of Hutch's files lie |
| \`HUTCH_NO_START\` | \`1\`: do not start the daemon |
`;

export function cliDocs(): string {
  const codes = Object.values(EXIT_CODES).map(({ code, when }) => `| ${code} | ${when} |`);
  const verbs = VERBS.map((verb) => {
    // The overview leaves these out, and so does the shell script, which reads it here while there is no Node.
    const where = verb.under === undefined ? '' : `In \`hutch ${verb.under}\`, too: `;
    if (!isBranch(verb)) return `### ${verb.name}\n\n${where}${leafText(verb.name, verb)}`;
    const leaves = verb.subverbs.map((leaf) => `#### ${verb.name} ${leaf.name}\n\n${leafText(`${verb.name} ${leaf.name}`, leaf)}`);
    const fallback =
      verb.fallback === undefined
        ? ''
        : ` \`hutch ${verb.name}${verb.fallbackTakes === 'words' ? ' …' : ''}\` alone is \`hutch ${verb.name} ${verb.fallback}${verb.fallbackTakes === 'words' ? ' …' : ''}\`.`;
    const listed = listedUnder(verb.name).map(({ name }) => `\`${name}\``);
    const also = listed.length === 0 ? '' : ` It lists ${listed.join(', ')} as well.`;
    return [`### ${verb.name}`, `${where}${verb.summary}.${fallback}${also}`, ...leaves].join('\n\n');
  });
  const common = COMMON_FLAGS.map((flag) => `\`${flagText(flag)}\``).join(' and ');
  return `${INTRODUCTION}
## Exit codes

| code | when |
| --- | --- |
${codes.join('\n')}

## Verbs

All take ${common}.

${verbs.join('\n\n')}
`;
}

function leafText(path: string, leaf: Leaf): string {
  const examples = leaf.examples.map(({ line, about }) => `${line}${about === '' ? '' : `  # ${about}`}`);
  const flags = leaf.flags.map((flag) => `| \`${flagText(flag)}\` | ${flag.about} |`);
  const notes = leaf.notes === undefined ? [] : [leaf.notes];
  const table = flags.length === 0 ? [] : [`| flag | |\n| --- | --- |\n${flags.join('\n')}`];
  const also = leaf.also === undefined ? '' : ` \`hutch ${leaf.also}\` and \`hutch ${path}\` are the same.`;
  return [`${leaf.summary}.${also}`, `\`\`\`sh\n${examples.join('\n')}\n\`\`\``, `\`${usageLine(path, leaf)}\``, ...notes, ...table].join(
    '\n\n',
  );
}

if (import.meta.main) writeFileSync(new URL('../docs/cli.md', import.meta.url), cliDocs());
