// Completion scripts for bash, zsh and fish, from the table. Names are asked of the CLI, by the name under
// which it was typed: from a checkout that is ./hutch, and there is no other.
import { COMMON_FLAGS, type Flag, isBranch, type Leaf, type Positional } from './verb.ts';
import { firstWords, listedUnder, VERBS } from './verbs.ts';

type Entry = {
  readonly path: string;
  readonly flags: readonly Flag[];
  readonly completes: NonNullable<Positional['completes']>;
  /** Whether words of that kind may stand behind the first, too. */
  readonly several: boolean;
  /** Whether words of another kind may: a command, a new name. */
  readonly others: boolean;
};

function entries(): readonly Entry[] {
  const of = (path: string, leaf: Leaf): Entry => {
    const [first] = leaf.positionals;
    return {
      path,
      flags: [...leaf.flags, ...COMMON_FLAGS],
      completes: first?.completes ?? 'nothing',
      several: first?.takes === 'several' || first?.takes === 'any',
      others: leaf.command !== undefined || leaf.positionals.length > 1,
    };
  };
  return VERBS.flatMap((verb) =>
    isBranch(verb)
      ? verb.subverbs.flatMap((leaf) =>
          [`${verb.name} ${leaf.name}`, ...(leaf.also === undefined ? [] : [leaf.also])].map((path) => of(path, leaf)),
        )
      : [of(verb.name, verb)],
  );
}

const branches = () => VERBS.filter(isBranch);
const spellings = ({ name, short }: Flag) => [`--${name}`, ...(short === undefined ? [] : [`-${short}`])];
const words = (flags: readonly Flag[]) => flags.flatMap(spellings).join(' ');
const quoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;

/** What the shell offers for a flag's value. */
function offered({ value, choices, completes }: Flag): 'file' | 'pair' | 'nothing' | NonNullable<Flag['completes']> {
  if (choices !== undefined) return choices;
  if (completes !== undefined) return completes;
  return value === 'FILE' ? 'file' : value === 'K=FILE' ? 'pair' : 'nothing';
}

/** A kind of word and, for a list, its words: two shell variables. */
const assigned = (kind: string | readonly string[]) =>
  typeof kind === 'string' ? `kind=${kind}` : `kind=words; list=${quoted(kind.join(' '))}`;

/** The verb's path and what it takes, as a shell `case`; zsh runs the same by its bash layer. */
export function bashCompletion(): string {
  const cases = entries().map(({ path, flags, completes, several }) => {
    const valued = words(flags.filter(({ value }) => value !== undefined));
    return `    ${quoted(path)}) flags=${quoted(words(flags))}; valued=${quoted(valued)}; most=${several ? 999 : 1}; ${assigned(completes)} ;;`;
  });
  const values = entries().flatMap(({ path, flags }) =>
    flags
      .filter((flag) => flag.value !== undefined && offered(flag) !== 'nothing')
      .map((flag) => {
        const patterns = spellings(flag).map((spelling) => quoted(`${path} ${spelling}`));
        return `      ${patterns.join(' | ')}) ${assigned(offered(flag))} ;;`;
      }),
  );
  const subs = branches().map(
    ({ name, subverbs }) => `    ${name}) subs=${quoted([...subverbs, ...listedUnder(name)].map((verb) => verb.name).join(' '))} ;;`,
  );
  return `# hutch completion for bash: source <(hutch completion bash)
_hutch() {
  local self cur verb place flags valued most kind list subs at first count word flag prefix
  self=\${COMP_WORDS[0]}
  cur=\${COMP_WORDS[COMP_CWORD]}
  verb=\${COMP_WORDS[1]:-}
  flags= valued= most=1 kind=nothing list= subs= first=2 count=0 flag= prefix=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W ${quoted([...firstWords(), 'help'].join(' '))} -- "$cur"))
    return
  fi
  case "$verb" in
${subs.join('\n')}
  esac
  place=$verb
  if [ -n "$subs" ]; then
    if [ "$COMP_CWORD" -eq 2 ]; then
      COMPREPLY=($(compgen -W "$subs" -- "$cur"))
      return
    fi
    place="$verb \${COMP_WORDS[2]:-}"
    first=3
  fi
  case "$place" in
${cases.join('\n')}
  esac
  # How far the command line has come: behind "--" is the sandbox's own command. Bash makes a word of each "=".
  at=$first
  while [ "$at" -lt "$COMP_CWORD" ]; do
    word=\${COMP_WORDS[at]}
    flag=
    case "$word" in
      --) return ;;
      -*) case " $valued " in *" $word "*) flag=$word ;; esac ;;
      # Bash makes three words of an image's name and its tag.
      :) count=$((count - 1)) ;;
      *) count=$((count + 1)) ;;
    esac
    at=$((at + 1))
    if [ -n "$flag" ]; then
      if [ "$at" -lt "$COMP_CWORD" ] && [ "\${COMP_WORDS[at]}" = = ]; then at=$((at + 1)); fi
      if [ "$at" -eq "$COMP_CWORD" ]; then break; fi
      if [ $((at + 2)) -eq "$COMP_CWORD" ] && [ "\${COMP_WORDS[at + 1]}" = = ]; then break; fi
      at=$((at + 1))
      if [ "$at" -lt "$COMP_CWORD" ] && [ "\${COMP_WORDS[at]}" = = ]; then at=$((at + 2)); fi
      flag=
    fi
  done
  if [ "$cur" = = ] && [ -n "$flag" ]; then cur=; fi
  if [ "$cur" = : ]; then count=$((count - 1)); fi
  # Zsh makes no word of a "=".
  case "$cur" in
    --*=*) flag=\${cur%%=*}; prefix="$flag="; cur=\${cur#*=} ;;
  esac
  if [ -n "$flag" ]; then
    kind=nothing
    case "$place $flag" in
${values.join('\n')}
    esac
  else
    case "$cur" in
      -*) COMPREPLY=($(compgen -W "$flags" -- "$cur")); return ;;
    esac
    if [ "$count" -ge "$most" ]; then return; fi
  fi
  case "$kind" in
    words) COMPREPLY=($(compgen -P "$prefix" -W "$list" -- "$cur")) ;;
    sandbox | snapshot | template | operation | key) COMPREPLY=($(compgen -P "$prefix" -W "$("$self" __complete "$kind" 2>/dev/null)" -- "$cur")) ;;
    image)
      word=$cur
      at=$COMP_CWORD
      while [ "$at" -gt "$first" ] && { [ "\${COMP_WORDS[at]}" = : ] || [ "\${COMP_WORDS[at - 1]}" = : ]; }; do
        at=$((at - 1))
        word="\${COMP_WORDS[at]}$word"
      done
      list=\${word%"\${word##*:}"}
      for at in $("$self" __complete image 2>/dev/null); do
        case "$at" in "$word"*) COMPREPLY+=("$prefix\${at#"$list"}") ;; esac
      done
      ;;
    file | pair)
      if [ "$kind" = pair ]; then
        case "$cur" in
          *=*) prefix="$prefix\${cur%%=*}="; cur=\${cur#*=} ;;
          *) [ "\${COMP_WORDS[COMP_CWORD - 1]}" = = ] || return ;;
        esac
      fi
      compopt -o filenames 2>/dev/null
      for word in "$cur"*; do
        if [ -e "$word" ]; then COMPREPLY+=("$prefix$word"); fi
      done
      ;;
    path)
      # Behind the colon it is the sandbox's file system.
      if [ "\${COMP_WORDS[COMP_CWORD - 1]}" = : ] || [ "$cur" = : ]; then return; fi
      for word in $("$self" __complete sandbox 2>/dev/null); do
        case "$word:" in "$cur"*) COMPREPLY+=("$word:") ;; esac
      done
      if [ "\${#COMPREPLY[@]}" -gt 0 ]; then compopt -o nospace 2>/dev/null; else compopt -o filenames 2>/dev/null; fi
      local IFS=$'\\n'
      COMPREPLY+=($(compgen -f -- "$cur"))
      ;;
  esac
}
complete -F _hutch hutch
`;
}

export function zshCompletion(): string {
  return `#compdef hutch
# hutch completion for zsh: source <(hutch completion zsh)
autoload -Uz compinit bashcompinit
(( \${+functions[compdef]} )) || compinit
bashcompinit
${bashCompletion().split('\n').slice(1).join('\n')}`;
}

/** For each verb: what follows it, its flags, and what those take. */
export function fishCompletion(): string {
  const twoWords = branches().map(({ name }) => name);
  const lines = [
    '# hutch completion for fish: hutch completion fish | source',
    '# Whether the command line has come to this verb, and not to "--", behind which is the sandbox’s own command.',
    'function __hutch_is',
    '    set -l typed (commandline -opc)',
    "    contains -- '--' $typed; and return 1",
    '    set -l path $typed[2]',
    `    if contains -- "$path" ${twoWords.join(' ')}; and set -q typed[3]`,
    '        set path "$path $typed[3]"',
    '    end',
    '    test "$path" = "$argv[1]"',
    'end',
    '# Whether no word but flags stands behind the verb yet: the values of flags are counted too, and then nothing is offered.',
    'function __hutch_begins',
    '    __hutch_is $argv[1]; or return 1',
    '    set -l typed (commandline -opc)',
    "    not string match -qv -- '-*' $typed[$argv[2]..-1]",
    'end',
    'function __hutch_names',
    '    set -l typed (commandline -opc)',
    '    $typed[1] __complete $argv[1] 2>/dev/null',
    'end',
    'complete -c hutch -f',
  ];
  const add = (condition: string, rest: string) => lines.push(`complete -c hutch -n ${quoted(condition)} ${rest}`);
  const offer = (kind: string | readonly string[]): string | null => {
    if (typeof kind !== 'string') return `-a ${quoted(kind.join(' '))}`;
    if (kind === 'sandbox' || kind === 'snapshot' || kind === 'template' || kind === 'image' || kind === 'operation' || kind === 'key')
      return `-a '(__hutch_names ${kind})'`;
    return null;
  };
  for (const verb of VERBS) {
    add("__hutch_is ''", `-a ${verb.name} -d ${quoted(verb.summary)}`);
    if (isBranch(verb))
      for (const leaf of [...verb.subverbs, ...listedUnder(verb.name)])
        add(`__hutch_is ${verb.name}`, `-a ${leaf.name} -d ${quoted(leaf.summary)}`);
  }
  for (const { path, flags, completes, others } of entries()) {
    const is = `__hutch_is '${path}'`;
    for (const flag of flags) {
      const { name, short, value, about } = flag;
      const given = offered(flag);
      const takes =
        value === undefined
          ? ''
          : given === 'file' || given === 'pair'
            ? ' -r -F'
            : ` -x${given === 'nothing' ? '' : ` ${offer(given) ?? ''}`}`;
      add(is, `-l ${name}${short === undefined ? '' : ` -s ${short}`}${takes} -d ${quoted(about)}`);
    }
    const here = !others ? is : `__hutch_begins '${path}' ${path.split(' ').length + 2}`;
    if (completes === 'path') {
      add(here, '-a \'(__hutch_names sandbox | string replace -r "\\$" :)\'');
      add(here, '-F');
    } else {
      const names = offer(completes);
      if (names !== null) add(here, names);
    }
  }
  return `${lines.join('\n')}\n`;
}
