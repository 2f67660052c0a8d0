// Dockerfiles of the corpus that are about the language: lines, words, variables, stages, and what an image says of itself.
import type { Case } from './corpus.ts';

export const CASES_OF_WORDS: Readonly<Record<string, Case>> = {
  'a Python service': {
    text: `# comments come first
ARG PYTHON_VERSION=1
FROM base:\${PYTHON_VERSION} as base
# Prevents Python from writing pyc files.
ENV PYTHONDONTWRITEBYTECODE=1
ENV PYTHONUNBUFFERED=1
WORKDIR /app
ARG UID=10001
RUN echo "appuser:x:\${UID}:\${UID}::/nonexistent:/sbin/nologin" >> /etc/passwd
RUN --mount=type=cache,target=/root/.cache/pip \\
    --mount=type=bind,source=requirements.txt,target=requirements.txt \\
    cat requirements.txt > /installed
USER appuser
COPY . .
EXPOSE 8000
CMD python -m flask run --host=0.0.0.0
`,
    files: { '.dockerignore': '**/.env\n**/node_modules\n**/*.tar*\nonly.gz\n' },
  },
  'packages in one long line, with comments between': {
    text: `FROM base:1
RUN mkdir -p /lists && \\
    # the first
    echo one > /lists/1 \\
    # the second

    && echo two > /lists/2 \\
	&& echo three \\
       > /lists/3
`,
  },
  'arguments and their scopes': {
    text: `ARG VERSION=1
ARG UNUSED=x
FROM base:\${VERSION} AS one
RUN echo "in one: [$VERSION]" > /one
ARG VERSION
ARG A=a B="b b"
ARG C=$A-$B
RUN echo "[$VERSION] [$A] [$B] [$C]" >> /one
FROM one
ARG VERSION=own
ARG A
RUN echo "[$VERSION] [$A] [$C]" > /two
ENV A=from-env
RUN echo "[$A]" >> /two
LABEL version="$VERSION" c=$C
`,
    args: { A: 'given', UNKNOWN: 'nobody asks' },
  },
  'the forms of ENV and LABEL': {
    text: `FROM base:1
ENV ONE 1 and  more  "quoted"
ENV TWO="2 two" THREE=3\\ three FOUR='4 $ONE' FIVE=$TWO
ENV SIX=\${THREE:-none} SEVEN=\${MISSING:-seven} EIGHT=\${TWO:+eight} NINE=\${MISSING:+nine}
ENV PATH=/opt/bin:$PATH TEN=\\$TWO ELEVEN="a\\"b" TWELVE='\\n'
ENV TWO=changed OTHER=$TWO
LABEL a=b c="d e" "f g"=h
LABEL multi="line \\
one" maintainer="Somebody <some@example.com>"
LABEL old style value
LABEL org.opencontainers.image.title=$TWO
`,
  },
  'variables in every instruction': {
    text: `FROM base:1
ARG DIR=work USERNAME=app PORT=8080 FILE=a
ENV TARGET=/$DIR/deep
WORKDIR $TARGET
WORKDIR ../\${DIR}2
COPY \${FILE}.txt $TARGET/
ADD --chown=\${USERNAME} b.txt \${TARGET}/c.txt
EXPOSE $PORT \${PORT}/udp
VOLUME $TARGET /data
USER \${USERNAME}
STOPSIGNAL \${SIGNAL:-SIGQUIT}
`,
  },
  'heredocs of RUN': {
    text: `FROM base:1
ARG WHO=world
RUN <<EOF
echo "hello $WHO" > /one
set -- a b
echo "$#" >> /one
EOF
RUN <<'EOF'
X=quoted
echo "$X" > /two
EOF
RUN <<-EOF
	echo tabs > /three
		echo more >> /three
EOF
RUN cat <<EOF > /four
	kept $WHO
EOF
RUN <<EOF sh > /five
echo from-stdin
EOF
RUN cat <<A - <<B > /six; echo done
one
A
two
B
`,
  },
  'heredocs whose variables are the shell’s': {
    text: `FROM base:1
ENV SET=before
RUN <<EOF
# a comment of the script

for i in 1 2 3; do echo "$i"; done > /loop
SET=inside
echo "$SET \\$SET $(echo sub) \${SET%e}" >> /loop
echo FROM nowhere
EOF
COPY <<EOF /file
# kept

FROM \\$SET $SET "quoted" 'single'
EOF
`,
  },
  'heredocs of COPY': {
    text: `FROM base:1
ARG WHO=world
ENV HOME=/h
COPY <<EOF /etc/app.conf
user=$WHO
home=\${HOME}
EOF
COPY <<'EOF' /etc/raw.conf
user=$WHO
EOF
COPY --chmod=755 --chown=app <<-"RUN" /bin/start
	#!/bin/sh
	exec "$@"
RUN
COPY a.txt <<one.txt <<two.txt /many/
1
one.txt
2
two.txt
`,
  },
  'a script with its own program': {
    text: `FROM base:1
RUN <<EOF
#!/bin/sh
echo "$0" | grep -c . > /ran
EOF
`,
  },
  'owners and modes of COPY': {
    text: `FROM base:1
COPY --chown=app a.txt /1
COPY --chown=app:root a.txt /2
COPY --chown=1234 a.txt /3
COPY --chown=1234:5678 src /4/
COPY --chmod=600 a.txt /6
COPY --chmod=0755 --chown=app:app docs /7
COPY --chmod=4755 scripts/run.sh /8
USER app
COPY a.txt /9
WORKDIR /made/by/workdir
RUN id -u > /tmp/who
`,
  },
  'stages by name, by number, as a base, and not needed': {
    text: `FROM base:1 AS First
RUN echo first > /f
FROM base:1
RUN echo second > /s
FROM first AS third
COPY --from=1 /s /from-number
COPY --from=FIRST /f /from-name
FROM base:1 AS unused
RUN false
FROM third
COPY --from=base:1 /opt/keep /from-image
`,
  },
  'a target in the middle': {
    text: `FROM base:1 AS base
ENV X=1
FROM base AS test
RUN echo test > /test
CMD ["test"]
FROM base AS release
RUN exit 3
`,
    target: 'test',
  },
  'SHELL, and shell forms after it': {
    text: `FROM base:1
RUN echo one > /one
SHELL ["/bin/sh", "-ec"]
RUN false || echo two > /two
CMD echo three
ENTRYPOINT exec echo four
HEALTHCHECK CMD wget -q localhost
`,
  },
  'ENTRYPOINT and CMD over those of the base': {
    text: `FROM base:1 AS base
ENTRYPOINT ["/bin/echo"]
CMD ["base"]
FROM base AS keeps
LABEL k=1
FROM keeps
ENTRYPOINT ["/bin/cat"]
`,
  },
  'CMD before ENTRYPOINT': {
    text: `FROM base:1
CMD ["a", "b"]
ENTRYPOINT ["/bin/echo"]
`,
  },
  'empty ENTRYPOINT and CMD': {
    text: `FROM base:1
ENTRYPOINT ["/bin/echo"]
ENTRYPOINT []
CMD []
`,
  },
  'HEALTHCHECK in full': {
    text: `FROM base:1
HEALTHCHECK --interval=1m30s --timeout=10s --start-period=500ms --retries=5 \\
  CMD curl -f http://localhost/ || exit 1
STOPSIGNAL 9
`,
  },
  'HEALTHCHECK as a list, then none': {
    text: `FROM base:1 AS with
HEALTHCHECK CMD ["/bin/true", "-x"]
FROM with
HEALTHCHECK NONE
`,
  },
  'ports and volumes': {
    text: `FROM base:1
EXPOSE 80 443/tcp 53/UDP
EXPOSE 8000-8003
VOLUME /data
VOLUME ["/a b", "/c"]
VOLUME /d /e
RUN mkdir -p /data && echo kept > /data/x
`,
  },
  'triggers for images that are built upon it': {
    text: `FROM base:1 AS parent
ONBUILD COPY a.txt /from-trigger
ONBUILD RUN echo ran > /ran
ONBUILD ENV T=1
RUN echo parent > /parent
FROM parent
COPY b.txt /b
`,
  },
  'triggers that are kept': {
    text: `FROM base:1
ONBUILD WORKDIR /app
ONBUILD COPY . .
onbuild run echo x
`,
  },
  'lower case, tabs and odd spaces': {
    text: `from	base:1  as   Odd

  run   echo   spaces   >   /one
env	A=1   B=2
	copy	a.txt	/a
cmd	[ "x" ]
`,
  },
  'line ends of Windows': {
    text: 'FROM base:1\r\nRUN echo a \\\r\n  && echo b > /crlf\r\nCOPY a.txt /a\r\nENV X=1\r\n',
  },
  'a byte order mark': { text: '\uFEFFFROM base:1\nENV X=1\n' },
  'the other escape character': {
    text: `# escape=\`
FROM base:1
RUN echo one \`
  > /one
ENV P=C:\\dir\\x Q="a\`"b"
LABEL L=C:\\path\`
`,
  },
  'directives that are comments': {
    text: `# a comment first
# escape=\`
FROM base:1
RUN echo one \\
 > /one
#ENV X=1
ENV Y=#no-comment
RUN echo "# in a string" > /hash # and one of the shell
`,
  },
  'a line that ends with the file': { text: 'FROM base:1\nRUN echo end > /end' },
  'a backslash that ends the file': { text: 'FROM base:1\nRUN echo end > /end \\\n' },
  'backslashes of the shell': {
    text: `FROM base:1
RUN printf 'a\\nb\\\\\\n' > /one && echo "x\\"y" >> /one && echo 'it'\\''s' >> /one
RUN echo \${HOME}-$0 \\$HOME '$HOME' > /two
RUN ["/bin/sh", "-c", "echo \\"json\\" $A \\u0041 > /three"]
`,
  },
  'a list that is none': {
    text: `FROM base:1
RUN ['single', 'quotes'] || echo shell > /one
CMD ['a']
ENTRYPOINT [ "a" "b" ]
`,
  },
  'defaults where nothing was given': {
    text: `ARG V
FROM base:\${V:-1}
ARG V="2 3" W='$V' X=$V Y
ENV W2=$W X2=$X Y2=\${Y-none}
RUN ["/bin/sh", "-c", "echo $V > /v"]
RUN --network=none cd /tmp && pwd > /w
RUN pwd >> /w
EXPOSE 80/tcp 80
USER 1000:2000
`,
  },
  'proxies without being asked for': {
    text: `FROM base:1
RUN echo "[$HTTP_PROXY] [$no_proxy]" > /proxy
`,
    args: { HTTP_PROXY: 'http://proxy.example:3128', no_proxy: 'localhost' },
  },
  platforms: {
    text: `FROM --platform=$BUILDPLATFORM base:1 AS build
ARG TARGETOS TARGETARCH
ARG TARGETPLATFORM BUILDPLATFORM TARGETVARIANT
RUN echo "$TARGETOS/$TARGETARCH [$TARGETPLATFORM] [$BUILDPLATFORM] [$TARGETVARIANT]" > /p
FROM --platform=linux/amd64 base:1
COPY --from=build /p /p
`,
  },
  'a maintainer of old': { text: 'FROM base:1\nMAINTAINER Some Body <some@example.com>\nRUN echo x > /x\n' },
  'nothing but FROM': { text: 'FROM base:1\n' },
  'forms of variables with patterns': {
    text: `FROM base:1
ARG V=v1.2.3-rc1
ENV A=\${V#v} B=\${V%-*} C=\${V%%.*} D=\${V##*.} E=\${V/./_} F=\${V//./_}
`,
  },
  'refused: a variable that must be set': { text: `FROM base:1\nARG V\nENV A=\${V:?must be set}\n` },
  'refused: a stage of later': { text: 'FROM base:1 AS one\nCOPY --from=later /x /y\nFROM base:1 AS later\nFROM one\n' },
  'refused: nothing before FROM': { text: 'RUN echo x\nFROM base:1\n' },
  'refused: no such flag': { text: 'FROM base:1\nCOPY --nope a.txt /a\n' },
};
