// What an ordinary Linux does with ordinary scripts: run in a sandbox and on this machine, over the same
// root file system, they must print the same. They use what busybox has as well, and depend on no clock.

export type Script = {
  readonly what: string;
  readonly script: string;
  /** `1000:1000`: not as root. */
  readonly user?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** In a terminal of 100 by 30. */
  readonly terminal?: true;
  /** Kernels that are not Linux and are known to do otherwise, each with what it does: the docs say the same. */
  readonly unlike?: { readonly 'user-space-kernel': string };
};

const IN_SCRATCH = 'mkdir -p /tmp/oracle && cd /tmp/oracle && rm -rf -- * && umask 022\n';

const own: readonly Script[] = [
  {
    what: 'files: links, modes, times, names',
    script: `echo one > a; ln a b; ln -s a c; ln -s nowhere d; mkdir -p x/y/z; mkfifo f; chmod 4751 a; umask 077; echo t > u; umask 022
stat -c '%n %F %a %h %s' a b c d u; stat -c '%n %F %a' f x; readlink c d; touch -d @1000000000 a; stat -c %Y b
printf x | dd of=hole bs=1 seek=1000000 2>/dev/null; stat -c %s hole
mv x/y w; ls -1 x w; rm -r x; cat d 2>/dev/null; echo $?; : > 'a name
with a line'; ls | wc -l; touch -- -rf; ls -1 | sort | head -3; cp -a a e; stat -c '%a %Y' e; rmdir w 2>/dev/null; echo $?`,
  },
  {
    what: 'files: the room that a hole takes, the links of a fifo',
    script: `printf x | dd of=hole bs=1 seek=1000000 2>/dev/null; test $(stat -c %b hole) -lt 100 && echo sparse; mkfifo f; stat -c %h f`,
    unlike: { 'user-space-kernel': 'a file takes as many blocks as it is long, and a fifo has two links' },
  },
  {
    what: 'files: what is open outlives its name, appends do not overwrite, a rename replaces',
    script: `echo kept > a; exec 3< a; rm a; cat <&3; exec 3<&-; test -e a; echo $?
(for i in 1 2 3 4 5; do echo one >> log; done) & (for i in 1 2 3 4 5; do echo two >> log; done) & wait; sort log | uniq -c | awk '{print $1, $2}'
echo old > x; echo new > y; mv y x; cat x; : > t; echo 12345 > t; dd if=/dev/null of=t bs=1 seek=2 2>/dev/null; stat -c %s t
mkdir d; mv d d2; echo z > d2/z; mv d2 d3 && cat d3/z; mv x /dev/shm/oracle-x 2>/dev/null && cat /dev/shm/oracle-x && rm /dev/shm/oracle-x`,
  },
  {
    what: 'files: another user may do no more than it may',
    user: '1000:1000',
    script: `rm -rf /tmp/oracle-user; mkdir /tmp/oracle-user && cd /tmp/oracle-user || exit 9
echo x > /etc/passwd; echo $?; echo mine > mine; chmod 600 mine; cat mine; chown 0 mine; echo $?; stat -c '%u %g %a' mine; rm -f /etc/group; echo $?; ls /root >/dev/null; echo $?; mkdir s; chmod 000 s; ls s; echo $?; rmdir s; cd /; rm -r /tmp/oracle-user; echo $?`,
  },
  {
    what: 'users: ids, groups, and what is root',
    script: `id; id -u; id -gn; whoami; test -w /etc/passwd && echo writable; echo ~root; echo $(umask)`,
  },
  {
    what: 'users: one that has no name',
    user: '4711:4712',
    script: `id -u; id -g; test -w /etc/passwd || echo not writable; echo x > /tmp/by-4711 && stat -c '%u %g' /tmp/by-4711; rm -f /tmp/by-4711`,
  },
  {
    what: 'signals: traps, exit codes, ignored and default, waiting',
    script: `for s in HUP INT TERM USR1 USR2 KILL PIPE ALRM ABRT; do sh -c "kill -$s \\$\\$"; echo "$s $?"; done 2>/dev/null
sh -c 'trap "echo caught; exit 3" TERM; kill -TERM $$'; echo $?
sh -c 'trap "" TERM; kill -TERM $$; echo survived'; sh -c 'trap "echo bye" EXIT; exit 4'; echo $?
(sleep 30 & p=$!; kill $p; wait $p; echo $?; sleep 30 & p=$!; kill -STOP $p; kill -CONT $p; kill -KILL $p; wait $p; echo $?) 2>/dev/null
kill -0 $$ && echo here; kill -0 999999; echo $?
(trap 'echo child got it; exit 0' USR1; while :; do sleep 0.02; done) & c=$!; sleep 0.2; kill -USR1 $c; wait $c; echo $?`,
  },
  {
    what: 'pipes: order, ends, floods, a reader that goes',
    script: `seq 1 5 | sort -r | tr '\\n' ' '; echo; yes | head -n 100000 | wc -l; (echo out; echo err >&2) 2>&1 >/dev/null | cat
sh -c 'yes; echo never' | head -n 1; false | true; echo $?; true | false; echo $?; echo hi | (read x; echo "[$x]"; read y; echo $?)
mkfifo p; (echo through > p) & cat p; wait; printf 'no newline' | wc -c; head -c 3000000 /dev/zero | tr '\\0' a | md5sum; cat < /dev/null; echo $?
exec 3>&1; echo to three >&3; (exec 3>&-; echo x >&3) 2>/dev/null; echo $?`,
  },
  {
    what: 'limits: of files, sizes',
    script: `(ulimit -n 16; i=3; while exec_ok=1; [ $i -lt 40 ]; do eval "exec $i</dev/null" 2>/dev/null || break; i=$((i+1)); [ $i -gt 9 ] && break; done; echo opened)
(ulimit -f 4; head -c 100000 /dev/zero > big; echo $?) 2>/dev/null; test -e big && test $(stat -c %s big) -le 4096 && echo bounded
(ulimit -c 0; ulimit -c); (ulimit -n 64; ulimit -n); (ulimit -v 400000; ulimit -v)`,
  },
  {
    what: 'limits: of processor time',
    script: `(ulimit -t 1; sh -c 'while :; do :; done'; echo $?) 2>/dev/null`,
    unlike: { 'user-space-kernel': 'a process is not ended for the processor time that it used' },
  },
  {
    what: 'time zones: by rule, by name, none',
    script: `for tz in UTC0 EST5EDT CET-1CEST,M3.5.0,M10.5.0/3 '<+0545>-5:45' Nowhere/Nothing; do TZ=$tz date -d @1700000000 '+%Y-%m-%d %H:%M:%S %z'; done
date -d @0 +%s; date -u -d @1234567890 '+%F %T'; test -e /usr/share/zoneinfo/Europe/Vienna && TZ=Europe/Vienna date -d @1700000000 +%T; echo zone $?`,
  },
  {
    what: 'locale: order and case by byte, and by UTF-8',
    script: `printf 'b\\nA\\na\\nB\\n' | LC_ALL=C sort | tr '\\n' ' '; printf 'ä\\nz\\na\\n' | LC_ALL=C.UTF-8 sort | tr '\\n' ' '; printf 'späß' | wc -c; printf 'späß' | LC_ALL=C.UTF-8 wc -m; LC_ALL=C printf '%.2f\\n' 3.14159; echo abc | tr a-z A-Z`,
    env: { LC_ALL: 'C' },
  },
  {
    what: 'processes: orphans, exit codes, arguments, environment',
    script: `sh -c 'exit 300'; echo $?; no-such-program; echo $?; /etc/passwd; echo $?; /; echo $?; sh -c 'echo "$0|$1|$2"' zero 'one two' '*'; env -i A=1 B='x y' env | sort; echo "$GIVEN"
sh -c 'sleep 0.2 & echo $! > orphan; exit 0'; kill -0 $(cat orphan) && echo lives; sleep 0.5; kill -0 $(cat orphan) 2>/dev/null || echo reaped; echo $((7/2)) $((-7%3)) $((0x10))`,
    env: { GIVEN: 'späß "quoted"' },
  },
  {
    what: 'pty: size, modes, line discipline',
    terminal: true,
    script: `tty > /dev/null && echo a terminal; stty size; stty -a | tr ';' '\\n' | grep -c . > /dev/null; stty -echo; stty -a | grep -o -- '-echo ' | head -1; stty echo; stty raw; stty -a | grep -o -- '-icanon' ; stty sane; stty -a | grep -o -- ' icanon' ; printf 'a\\tb\\n'; sh -c 'test -t 0; echo $?' < /dev/null; ps -o tty= -p $$ 2>/dev/null | grep -q . ; stty rows 5 cols 7; stty size`,
  },
  {
    what: 'pty: /dev/tty is the terminal',
    terminal: true,
    script: `test -c /dev/tty && echo mine > /dev/tty`,
    unlike: { 'user-space-kernel': '/dev/tty cannot be opened' },
  },
];

export const SCRIPTS: readonly Script[] = own.map((one) => ({
  ...one,
  script: one.user === undefined ? IN_SCRATCH + one.script : one.script,
}));
