import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Ignored } from '../../domain/dockerignore.ts';
import { type Instruction, parseDockerfile } from './dockerfile.ts';
import { DockerfileError } from './dockerfile-error.ts';
import { neededStages, targetOf } from './graph.ts';
import { keyOf } from './keys.ts';
import { applied, globalsOf, newState, variablesOf } from './state.ts';
import { expand, splitWords, WordError } from './words.ts';

const parse = (text: string) => parseDockerfile(text);
const steps = (text: string): readonly Instruction[] => parse(`FROM scratch\n${text}`).stages[0]?.steps ?? [];
const only = (text: string) => steps(text)[0];
const withEnv = (env: Record<string, string>) => (word: string) => expand(word, (name) => env[name], '\\');

/** Each with a word of what is said about it. */
const REFUSED: readonly (readonly [text: string, said: RegExp])[] = [
  ['', /no FROM/],
  ['# only a comment\n', /no FROM/],
  ['RUN true', /first instruction must be FROM/],
  ['FROM', /FROM IMAGE/],
  ['FROM a b', /FROM IMAGE AS NAME/],
  ['FROM a AS', /FROM IMAGE AS NAME/],
  ['FROM a AS 1bad!', /no name for a stage/],
  ['FROM a AS x\nFROM b AS X', /line 1: give this one another name/],
  ['FROM a\nRUNN x', /no instruction/],
  ['FROM a\nRUN', /a command is missing/],
  ['FROM a\nRUN []', /list is empty/],
  ['FROM a\nRUN --mount=type=ssh true', /as a secret/],
  ['FROM a\nRUN --mount=type=cache true', /needs target/],
  ['FROM a\nRUN --mount=type=magic,target=/x true', /not known/],
  ['FROM a\nRUN --mount=type=tmpfs,target=/x,from=y true', /has no from/],
  ['FROM a\nRUN --mount=type=cache,target=/x,sharing=often true', /sharing is shared, private, locked/],
  ['FROM a\nRUN --mount=target=/x,ro,rw true', /exclude each other/],
  ['FROM a\nRUN --mount=type=secret,id=x,required=maybe true', /required is true or false, not maybe/],
  ['FROM a\nRUN --mount=type=cache,target=/x,mode=0999 true', /mode is an octal number like 0750, not 0999/],
  ['FROM a\nRUN --network=host true', /own network/],
  ['FROM a\nRUN --device=x true', /no device/],
  ['FROM a\nRUN <<EOF\necho', /never ended/],
  ['FROM a\nCOPY x', /COPY SOURCE/],
  ['FROM a\nCOPY x y z', /end z with a/],
  ['FROM a\nCOPY --form=x a b', /--form is not known/],
  ['FROM a\nCOPY --link=maybe a b', /true or false/],
  ['FROM a\nADD https://example.com/x https://example.com/y /x/', /an ADD of its own/],
  ['FROM a\nADD --checksum=sha256:1 https://example.com/x /x', /--checksum is like/],
  ['FROM a\nADD https://example.com/x.git /x', /clone it/],
  ['FROM a\nENV', /ENV NAME=VALUE/],
  ['FROM a\nENV A', /has no value/],
  ['FROM a\nENV A=1 B', /no NAME=VALUE/],
  ['FROM a\nARG 1x', /no name of a variable/],
  ['FROM a\nSHELL /bin/sh', /as JSON/],
  ['FROM a\nHEALTHCHECK true', /HEALTHCHECK CMD/],
  ['FROM a\nHEALTHCHECK --interval=soon CMD true', /a time like/],
  ['FROM a\nONBUILD FROM b', /not allowed/],
  ['FROM a\nONBUILD ONBUILD RUN x', /not allowed/],
  ['# escape=x\nFROM a', /escape must be/],
  ['# escape=`\n# escape=`\nFROM a', /given twice/],
  ['FROM a\nWORKDIR', /a value is missing/],
];

test.each(REFUSED)('a Dockerfile that is wrong is refused with its line: %j', (text, said) => {
  let refusal: unknown;
  try {
    parse(text);
  } catch (error) {
    refusal = error;
  }
  expect(refusal).toBeInstanceOf(DockerfileError);
  expect((refusal as Error).message).toMatch(said);
  expect((refusal as DockerfileError).line).toBeGreaterThan(0);
});

test('lines are continued, over comments and empty ones', () => {
  expect(only('RUN a && \\\n  # why\n\n  b && \\\n# more\nc')).toMatchObject({ command: { form: 'shell', text: 'a &&   b && c' } });
  expect(steps('RUN a \\\\\nRUN b')).toHaveLength(2);
  expect(parse('# escape=`\nFROM a\nRUN x `\n y\nCOPY a C:\\').stages[0]?.steps).toMatchObject([
    { command: { text: 'x  y' } },
    { target: 'C:\\' },
  ]);
  expect(parse('# syntax=docker/dockerfile:1\n# check=skip=all\nFROM a').directives).toEqual({
    syntax: 'docker/dockerfile:1',
    check: 'skip=all',
  });
  // After a comment that is none, a directive is a comment too.
  expect(parse('# hello\n# escape=`\nFROM a').escapeChar).toBe('\\');
  expect(parse('\uFEFFFROM a\r\nRUN x\r\n').stages[0]?.steps).toMatchObject([{ command: { text: 'x' } }]);
  expect(parse('from a as B\nrun x').stages[0]).toMatchObject({ from: { as: 'B' }, steps: [{ name: 'RUN' }] });
});

test('heredocs are scripts, files and input of a shell', () => {
  expect(only('RUN <<EOF\necho a\n  b\nEOF')).toMatchObject({ command: { form: 'script', text: 'echo a\n  b\n' } });
  expect(only("RUN <<-'EOF'\n\techo a\n\tEOF")).toMatchObject({ command: { form: 'script', text: 'echo a\n' } });
  expect(only('RUN python3 <<EOF > /x\nprint(1)\nEOF')).toMatchObject({
    command: { form: 'shell', text: 'python3 <<EOF > /x\nprint(1)\nEOF' },
  });
  expect(only('COPY <<a <<"b" /dir/\n1\na\n$2\nb')).toMatchObject({
    sources: [],
    target: '/dir/',
    inline: [
      { name: 'a', content: '1\n', expand: true },
      { name: 'b', content: '$2\n', expand: false },
    ],
  });
  expect(steps('RUN echo "<<no" \'<<no\' <<<here\nRUN x')).toHaveLength(2);
});

test('commands have two forms, and a bracket of a shell is none of them', () => {
  expect(only('CMD ["a", "b c"]')).toMatchObject({ command: { form: 'exec', argv: ['a', 'b c'] } });
  expect(only('CMD [ -f x ] && y')).toMatchObject({ command: { form: 'shell', text: '[ -f x ] && y' } });
  expect(only('ENTRYPOINT []')).toMatchObject({ command: { form: 'exec', argv: [] } });
  expect(only('COPY ["a b", "c d/"]')).toMatchObject({ sources: ['a b'], target: 'c d/' });
  expect(only('HEALTHCHECK --interval=1m30s --retries=3 CMD curl x')).toMatchObject({
    intervalNs: 90e9,
    retries: 3,
    command: { text: 'curl x' },
  });
  expect(only('HEALTHCHECK NONE')).toMatchObject({ command: null });
  expect(only('COPY --from=x --chown=1:2 --chmod=u+x --link --exclude=*.md --exclude=t a b/')).toMatchObject({
    flags: { from: 'x', chown: '1:2', chmod: 'u+x', link: true, exclude: ['*.md', 't'] },
  });
  expect(only('RUN --mount=type=cache,id=x,dst=/c,sharing=locked --mount=type=secret,id=t,required --network=none y')).toMatchObject({
    network: 'none',
    mounts: [
      { type: 'cache', id: 'x', target: '/c' },
      { type: 'secret', id: 't', required: true },
    ],
  });
});

test('variables take the forms of a shell', () => {
  const say = withEnv({ a: 'one', empty: '', path: '/x/y/z.tar.gz' });
  const cases: Readonly<Record<string, string>> = {
    $a: 'one',
    '${a}b': 'oneb',
    '\\$a': '$a',
    "'$a'": '$a',
    '"$a"': 'one',
    '"\\$a \\n"': '$a \\n',
    '${none:-x}': 'x',
    '${none:-$a}': 'one',
    '${empty:-x}': 'x',
    '${empty-x}': '',
    '${a:+yes}': 'yes',
    '${none:+yes}': '',
    '${path#*/}': 'x/y/z.tar.gz',
    '${path##*/}': 'z.tar.gz',
    '${path%.*}': '/x/y/z.tar',
    '${path%%.*}': '/x/y/z',
    '${path/x/Q}': '/Q/y/z.tar.gz',
    '${path//[/]/_}': '/x/y/z.tar.gz',
    '${a//n/N}': 'oNe',
    $: '$',
    a$: 'a$',
    $none: '',
  };
  for (const [word, said] of Object.entries(cases)) expect([word, say(word)]).toEqual([word, said]);
  for (const word of ["'open", '"open', `\${open`, `\${a!b}`, `\${none:?it is missing}`]) expect(() => say(word), word).toThrow(WordError);
});

test('ENV comes before ARG, and an ARG before FROM is known in a stage once that asks for it', () => {
  const file = parse(`ARG V=1\nARG W=\${V}2\nFROM scratch\nARG V\nARG X=x$V\nENV E=$X V=9\nRUN a`);
  const state = (args: Record<string, string>) => {
    const given = new Map(Object.entries(args));
    const globals = globalsOf(file.globals, given, null, '\\');
    expect(globals.values.get('W')).toBe(`${args['V'] ?? '1'}2`);
    return (file.stages[0]?.steps ?? []).reduce((now, step) => applied(now, step, globals, '\\') ?? now, newState({}, null));
  };
  expect(variablesOf(state({}))('V')).toBe('9');
  expect(state({}).config.Env).toContain('E=x1');
  expect(state({ V: '7' }).config.Env).toContain('E=x7');
  expect(state({ X: 'y' }).config.Env).toContain('E=y');
  // Who did not ask for it has not got it.
  expect(variablesOf(state({ Z: 'z' }))('Z')).toBeUndefined();
});

test('only the stages that a target needs are built, after those that they need', () => {
  const file = parse(
    'FROM a AS one\nRUN x\nFROM b AS two\nFROM one AS three\nCOPY --from=two / /\nFROM c AS four\nRUN --mount=type=bind,from=three,target=/t x\nFROM d',
  );
  const names = (target: string | null) =>
    neededStages(file, targetOf(file, target), (name) => name).map(({ from, index }) => from.as ?? index);
  expect(names(null)).toEqual([4]);
  expect(names('four')).toEqual(['one', 'two', 'three', 'four']);
  expect(names('TWO')).toEqual(['two']);
  expect(names('2')).toEqual(['one', 'two', 'three']);
  expect(() => names('five')).toThrow(/one, two, three, four/);
});

test('.dockerignore leaves out what Docker leaves out', () => {
  const ignored = Ignored.parse('# comment\nnode_modules\n**/*.log\n/docs/*\n!docs/keep.md\n*/temp*\n[ab].txt\n./x/../y\n');
  const out = ['node_modules', 'node_modules/a/b', 'x.log', 'a/b/c.log', 'docs/other.md', 'sub/temporary', 'a.txt', 'y', 'y/z'];
  const kept = ['src', 'src/node_modules', 'docs', 'docs/keep.md', 'temp', 'c.txt', 'x', 'node_modules2'];
  expect([...out, ...kept].filter((path) => ignored.has(path))).toEqual(out);
  expect(Ignored.parse('*\n!a').has('b')).toBe(true);
  expect(Ignored.parse('*\n!a').has('a')).toBe(false);
});

test('any text is a Dockerfile or is refused in words', () => {
  const word = fc.constantFrom(
    'FROM',
    'RUN',
    'COPY',
    'ENV',
    'ARG',
    'a',
    '=',
    '\\',
    '`',
    '"',
    "'",
    '$',
    '${',
    '}',
    '<<E',
    'E',
    '\n',
    ' ',
    '#',
    '--mount=',
    '[',
    ']',
    ',',
    'AS',
    '--from=0',
    ':-',
  );
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string({ unit: 'binary', maxLength: 200 }),
        fc.array(word, { maxLength: 60 }).map((words) => words.join('')),
      ),
      (text) => {
        try {
          expect(parse(text).stages.length).toBeGreaterThan(0);
        } catch (error) {
          expect(error).toBeInstanceOf(DockerfileError);
        }
      },
    ),
    { numRuns: 500 },
  );
});

test('words that were split are all of the text; what holds nothing special means itself', () => {
  fc.assert(
    fc.property(fc.string({ maxLength: 100 }), (text) => {
      expect(splitWords(text, '\\').join('').replaceAll(/\s/g, '')).toBe(text.replaceAll(/\s/g, ''));
    }),
  );
  fc.assert(fc.property(fc.stringMatching(/^[A-Za-z0-9_./:@-]*$/), (text) => void expect(expand(text, () => 'no', '\\')).toBe(text)));
});

test('no two lists have one key', () => {
  const lists = fc.array(fc.array(fc.constantFrom('', 'a', 'aa', '\0', '1', '0'), { maxLength: 4 }), { maxLength: 4 });
  fc.assert(fc.property(lists, lists, (a, b) => void expect(keyOf(...a) === keyOf(...b)).toBe(JSON.stringify(a) === JSON.stringify(b))));
});
