// Completion scripts for bash, zsh and fish, from the table. Names of sandboxes are asked of the CLI.
import { COMMON_FLAGS, type Flag, isBranch, type Leaf, type Positional } from './verb.ts';
import { VERBS } from './verbs.ts';

type Entry = { readonly path: string; readonly flags: readonly Flag[]; readonly kind: NonNullable<Positional['completes']> };

function entries(): readonly Entry[] {
  const of = (path: string, leaf: Leaf): Entry => ({
    path,
    flags: [...leaf.flags, ...COMMON_FLAGS],
    kind: leaf.positionals[0]?.completes ?? 'nothing',
  });
  return VERBS.flatMap((verb) =>
    isBranch(verb) ? verb.subverbs.map((leaf) => of(`${verb.name} ${leaf.name}`, leaf)) : [of(verb.name, verb)],
  );
}

const branches = () => VERBS.filter(isBranch);
const words = (flags: readonly Flag[]) =>
  flags.flatMap(({ name, short }) => [`--${name}`, ...(short === undefined ? [] : [`-${short}`])]).join(' ');
const quoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;

/** The verb's path and what it takes, as a shell `case`; zsh runs the same by its bash layer. */
export function bashCompletion(): string {
  const cases = entries().map(({ path, flags, kind }) => `    ${quoted(path)}) flags=${quoted(words(flags))}; kind=${kind} ;;`);
  const subs = branches().map(({ name, subverbs }) => `    ${name}) subs=${quoted(subverbs.map((leaf) => leaf.name).join(' '))} ;;`);
  return `# hutch completion for bash: source <(hutch completion bash)
_hutch() {
  local cur verb sub path flags kind subs word
  cur=\${COMP_WORDS[COMP_CWORD]}
  verb=\${COMP_WORDS[1]:-}
  flags= kind=nothing subs=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W ${quoted([...VERBS.map(({ name }) => name), 'help'].join(' '))} -- "$cur"))
    return
  fi
  case "$verb" in
${subs.join('\n')}
  esac
  path=$verb
  if [ -n "$subs" ]; then
    if [ "$COMP_CWORD" -eq 2 ]; then
      COMPREPLY=($(compgen -W "$subs" -- "$cur"))
      return
    fi
    sub=\${COMP_WORDS[2]:-}
    path="$verb $sub"
  fi
  case "$path" in
${cases.join('\n')}
  esac
  case "$cur" in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$cur")); return ;;
  esac
  case "$kind" in
    sandbox | operation) COMPREPLY=($(compgen -W "$(hutch __complete "$kind" 2>/dev/null)" -- "$cur")) ;;
    path)
      COMPREPLY=($(compgen -f -- "$cur"))
      for word in $(hutch __complete sandbox 2>/dev/null); do
        case "$word:" in "$cur"*) COMPREPLY+=("$word:") ;; esac
      done
      ;;
  esac
}
complete -F _hutch hutch
`;
}

export function zshCompletion(): string {
  return `#compdef hutch
# hutch completion for zsh: source <(hutch completion zsh)
autoload -Uz bashcompinit && bashcompinit
${bashCompletion().split('\n').slice(1).join('\n')}`;
}

export function fishCompletion(): string {
  const lines = ['# hutch completion for fish: hutch completion fish | source', 'complete -c hutch -f'];
  for (const verb of VERBS) {
    lines.push(`complete -c hutch -n __fish_use_subcommand -a ${verb.name} -d ${quoted(verb.summary)}`);
    if (!isBranch(verb)) continue;
    const names = verb.subverbs.map(({ name }) => name).join(' ');
    for (const leaf of verb.subverbs) {
      lines.push(
        `complete -c hutch -n '__fish_seen_subcommand_from ${verb.name}; and not __fish_seen_subcommand_from ${names}' -a ${leaf.name} -d ${quoted(leaf.summary)}`,
      );
    }
  }
  for (const { path, flags, kind } of entries()) {
    const seen = path
      .split(' ')
      .map((word) => `__fish_seen_subcommand_from ${word}`)
      .join('; and ');
    for (const { name, short, value, about } of flags) {
      lines.push(
        `complete -c hutch -n '${seen}' -l ${name}${short === undefined ? '' : ` -s ${short}`}${value === undefined ? '' : ' -r'} -d ${quoted(about)}`,
      );
    }
    if (kind === 'sandbox' || kind === 'operation' || kind === 'path') {
      lines.push(`complete -c hutch -n '${seen}' -a '(hutch __complete ${kind === 'operation' ? kind : 'sandbox'} 2>/dev/null)'`);
    }
    if (kind === 'path') lines.push(`complete -c hutch -n '${seen}' -F`);
  }
  return `${lines.join('\n')}\n`;
}
