// Dockerfiles of the corpus that are about files: what is copied, mounted, left out, removed, and whose it is.
import type { Case } from './corpus.ts';

export const CASES_OF_FILES: Readonly<Record<string, Case>> = {
  'a web application in two stages': {
    text: `FROM base:1 AS deps
WORKDIR /app
COPY package.json package-lock.json ./
RUN mkdir node_modules && echo installed > node_modules/.marker

FROM base:1 AS build
WORKDIR /app
COPY --from=deps /app/node_modules ./node_modules
COPY . .
RUN mkdir -p dist && cat src/index.js > dist/index.js

FROM base:1
ENV NODE_ENV=production
WORKDIR /app
COPY --from=build --chown=app:app /app/dist ./dist
COPY --from=deps /app/node_modules ./node_modules
USER app
EXPOSE 3000
CMD ["node", "dist/index.js"]
`,
    files: { '.dockerignore': 'node_modules\n.git\n*.md\n' },
  },
  'a static binary from scratch': {
    text: `FROM base:1 AS build
WORKDIR /src
COPY go.mod ./
RUN echo binary > /bin/server && chmod +x /bin/server
FROM scratch
COPY --from=build /bin/server /bin/
ENTRYPOINT [ "/bin/server" ]
`,
  },
  'COPY with patterns': {
    text: `FROM base:1
COPY *.txt /txt/
COPY docs/*.md docs/?.txt /docs/
COPY src/*/deep/[xz].* /deep/
COPY pack*.json ./
COPY file[[]1].txt /brackets/
COPY src/*/ /below/
`,
  },
  'COPY with a pattern that nothing fits, beside one file': { text: 'FROM base:1\nCOPY no-such*.txt a.txt /maybe/\n' },
  'COPY with a pattern that nothing fits': { text: 'FROM base:1\nCOPY no-such* /maybe/\nCOPY a.txt /a\n' },
  'COPY of directories': {
    text: `FROM base:1
WORKDIR /w
COPY src dst
COPY src/ dst2/
COPY src/. ./dst3
COPY src docs /both/
COPY ./ ./all/
COPY empty /is-empty/
COPY . /
`,
    files: { '.dockerignore': 'node_modules\ndata*\nlink\ndirlink\ndangling\n' },
  },
  'COPY of links': {
    text: `FROM base:1
COPY link /as-file
COPY link /as-dir/
COPY dirlink /from-dirlink
COPY dirlink/index.js /through
COPY . /all
COPY a.txt /srv/link/
COPY a.txt /srv/link/one
`,
    files: { '.dockerignore': '*\n!link\n!dirlink\n!dangling\n!a.txt\n!src\n!README.md\n' },
  },
  'COPY into what is there': {
    text: `FROM base:1
COPY a.txt /opt
COPY a.txt /opt/keep
COPY docs /opt/old
COPY b.txt /usr/local/bin/tool
COPY b.txt /new/deep/er/
COPY a.txt /new/deep/file
`,
  },
  'COPY as JSON, with spaces': {
    text: `FROM base:1
COPY ["with space.txt", "a.txt", "/a dir/"]
ADD [ "b.txt" , "/j/" ]
`,
  },
  'COPY with link': {
    text: `FROM base:1 AS other
RUN mkdir /out && echo o > /out/o && ln -s o /out/l
FROM base:1
COPY --link a.txt /linked/a
COPY --link --from=other /out /linked/out
COPY --link=false b.txt /b
COPY --link --chown=1000:1000 --chmod=640 docs /docs/
`,
  },
  'ADD of archives': {
    text: `FROM base:1
ADD data.tar /plain
ADD data.tar.gz /packed/
ADD only.gz /not-an-archive.gz
ADD a.txt data.tar /both/
ADD docs/*.md /md/
COPY data.tar.gz /copied/
`,
  },
  'ADD of an archive for somebody': { text: 'FROM base:1\nADD --chown=app:app data.tar.gz /owned/\n' },
  'ignored, and taken back': {
    text: `FROM base:1
COPY . /ctx
`,
    files: {
      '.dockerignore': '# a comment\n*\n!src\nsrc/lib/deep\n!**/y.md\n!docs/*.md\ndocs/b.*\n!.env\n\n  !a.txt  \n/b.txt\n!scripts/\n',
    },
  },
  'ignored at any depth': {
    text: `FROM base:1
COPY . /ctx
`,
    files: {
      '.dockerignore': '**/*.md\n**/deep\n!README.md\nnode_modules\ndata.tar*\n*.gz\nDockerfile\n.dockerignore\n./docs/../.hidden\n',
    },
  },
  'ignored by a list of its own': {
    text: 'FROM base:1\nCOPY . /ctx\n',
    files: { 'Dockerfile.dockerignore': '*\n!docs\n', '.dockerignore': '*\n!src\n' },
  },
  'a symlink replaced by a directory, and built upon': {
    text: `FROM base:1
RUN rm /srv/link && mkdir /srv/link && echo in > /srv/link/in
COPY a.txt /a
RUN ls /opt/old /srv/link > /seen
`,
  },
  'mounts of files and directories': {
    text: `FROM base:1 AS tools
RUN mkdir /tools && echo tool > /tools/t
FROM base:1
WORKDIR /w
RUN --mount=type=bind,target=/ctx,rw echo x > /ctx/written && cat /ctx/a.txt > /1
RUN --mount=type=bind,from=tools,source=/tools,target=/t cat /t/t > /2
RUN --mount=type=bind,source=src/lib,dst=lib ls lib > /3
RUN --mount=target=/whole ls /whole/docs > /4
`,
  },
  'mounts of caches and memory': {
    text: `FROM base:1
RUN --mount=type=cache,target=/cache,id=k,sharing=locked echo c > /cache/c; ls /cache > /5
RUN --mount=type=cache,target=/cache,id=k ls /cache > /6
RUN --mount=type=tmpfs,target=/opt/old ls /opt/old | wc -l > /7; touch /opt/old/gone
RUN --mount=type=tmpfs,target=/newtmp touch /newtmp/x
RUN --mount=type=cache,target=/own,uid=1000,gid=1001,mode=0700 stat -c '%u %g %a' /own > /9
`,
  },
  'mounts of secrets': {
    text: `FROM base:1
RUN --mount=type=secret,id=s,target=/etc/s --mount=type=secret,id=s wc -c < /run/secrets/s > /8
RUN --mount=type=secret,id=s,mode=0444,uid=1000 stat -c '%u %g %a' /run/secrets/s > /9
RUN --mount=type=secret,id=missing test ! -e /run/secrets/missing
`,
    secrets: { s: 'secret' },
  },
  'removed, moved and replaced': {
    text: `FROM base:1
RUN rm -r /opt/old && mkdir /opt/old && echo new > /opt/old/three
RUN mv /opt/keep /opt/kept && rm /srv/link && mkdir /srv/link && echo in > /srv/link/in
RUN rm /opt/kept && ln -s old /opt/kept
COPY docs /opt/old
RUN rm -rf /opt/old/sub /opt/old/a.md
`,
  },
  'users and their homes': {
    text: `FROM base:1
RUN mkdir -p /home/app && chown 1000:1001 /home/app
USER app:app
WORKDIR /home/app
RUN touch mine && id -g > gid
USER 1000
RUN touch theirs
USER 0:0
RUN touch roots
USER app
`,
  },
  'working directories': {
    text: `FROM base:1
WORKDIR /a
WORKDIR b
WORKDIR ../c/./d
RUN echo "$PWD" > here
WORKDIR /srv/link
RUN echo x > there
WORKDIR "/with space"
`,
  },
  'scratch with nothing to run': { text: 'FROM scratch\nCOPY a.txt /\nADD data.tar /\nENV A=1\nCMD ["/a"]\n' },
  'modes, links and what masks leave': {
    text: `FROM base:1 AS made
RUN umask 077 && mkdir /private && echo p > /private/p
RUN touch /tmp/a && ln /tmp/a /tmp/b && ln -s /tmp/a /tmp/c && chmod 2755 /private && chmod 4711 /tmp/a
FROM made
COPY --chown=app:app --from=made /private /copy
COPY --from=made /tmp /tmp2
`,
  },
  'COPY with the directories above': {
    text: `FROM base:1
COPY --parents src/lib/deep/x.txt docs/*.md /p/
COPY --parents ./src/./lib/*.js /q/
COPY --parents src/lib /r
COPY --parents a.txt ./s/
`,
  },
  'a copy that nobody needs, from a stage of later': { text: 'FROM base:1\nCOPY --from=later /x /y\nFROM base:1 AS later\n' },
  'refused: outside of the context': { text: 'FROM base:1\nCOPY ../../etc/hostname-x /x\n' },
  'refused: what is left out': { text: 'FROM base:1\nCOPY a.txt /a\n', files: { '.dockerignore': 'a.txt\n' } },
};
