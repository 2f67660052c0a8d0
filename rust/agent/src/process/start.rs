//! `process.start`: from the request to a running program. Pipes and table entry exist before the
//! program does, so that its first byte is not lost and a repeated start finds it.
use super::table::{Cause, Channel, MAIN, Process, Starter, WhenUnread};
use crate::agent::{Agent, Place, Token};
use crate::clock::wall_ms;
use crate::fault::{Fault, errno_name};
use crate::jobs::Ticket;
use crate::settings::Environment;
use crate::timers::Timer;
use crate::users::User;
use crate::wire::fields::Fields;
use hutch_sys::{Credentials, Program, SpawnFailure, SpawnStage};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

const ID_CHARS_MAX: usize = 64;
const ARGUMENT_COUNT_MAX: usize = 65_536;
/// Of argv is kept what lists show, and what failures name.
const ARGUMENTS_KEPT_BYTES: usize = 2_048;
const PROCESSES_MAX: usize = 4_096;

pub fn check_id(id: &str) -> Result<(), Fault> {
    let fits =
        (1..=ID_CHARS_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fits { Ok(()) } else { Err(Fault::invalid_argument("id must be 1 to 64 of A-Z, a-z, 0-9, . _ -")) }
}

/// What the program gets, all of it owned: the thread that starts it needs nothing else.
struct Plan {
    argv: Vec<CString>,
    candidates: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
    credentials: Option<Credentials>,
    oom_score_adj: Option<CString>,
    stdio: [OwnedFd; 3],
    terminal: bool,
}

/// Our ends.
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

impl Agent {
    /// Answers by itself when the program runs, unless the request is wrong.
    pub fn process_start(&mut self, ticket: Ticket, p: Fields<'_>) -> Result<(), Fault> {
        let id = p.str("id")?;
        check_id(id)?;
        let input = match p.opt_str("stdin")?.unwrap_or("null") {
            "pipe" => true,
            "null" => false,
            _ => return Err(Fault::invalid_argument("stdin must be \"pipe\" or \"null\"")),
        };
        let mut starter = Starter { stream: ticket.stream, subscribe: p.bool_or("subscribe", true)?, input, existing: false };
        if let Some(key) = self.processes.key_of(id) {
            starter.existing = true;
            match self.processes.get_mut(key) {
                Some(process) if process.pid.is_none() => process.starting.push(starter),
                _ => self.greet(key, starter),
            }
            return Ok(());
        }
        if self.processes.all().filter(|(_, process)| process.is_running()).count() >= PROCESSES_MAX {
            return Err(Fault::resource_exhausted(format!("{PROCESSES_MAX} processes are running in the sandbox")));
        }
        let key = self.processes.next_key();
        let (plan, ends, terminal) = self.plan(p, input)?;
        let process = Process {
            id: id.to_owned(),
            argv: kept(&p.opt_list("argv")?.unwrap_or_default()),
            tag: p.opt_str("tag")?.map(str::to_owned),
            pid: None,
            started_at_ms: wall_ms(),
            terminal,
            when_unread: match p.opt_str("whenUnread")?.unwrap_or("block") {
                "block" => WhenUnread::Block,
                "drop" => WhenUnread::Drop,
                _ => return Err(Fault::invalid_argument("whenUnread must be \"block\" or \"drop\"")),
            },
            channels: self.channels(key, ends.stdout, ends.stderr)?,
            subscribers: Vec::new(),
            starting: vec![starter],
            waiters: Vec::new(),
            stdin: ends.stdin,
            stdin_watched: false,
            input_offset: 0,
            input: None,
            lifetime_ms: p.opt_in("lifetimeMs", 1, 1 << 42)?,
            cause: Cause::Own,
            oom_killed: false,
            status: None,
            last_output: Instant::now(),
            ended_at_ms: 0,
            exit: None,
            exited_at: None,
            log: if p.bool_or("keepLog", id == MAIN)? { self.open_log(id) } else { None },
        };
        let notes = self.notes.clone();
        self.starting += 1;
        let started = self.pool.run(move || {
            crate::directories::settle();
            let result = run(&plan).map_err(|failure| NotStarted { failure, cwd: plan.cwd.clone() });
            drop(plan);
            notes.post(move |agent| agent.process_started(key, result));
        });
        if let Err(fault) = started {
            self.starting -= 1;
            return Err(fault);
        }
        self.processes.insert(key, process);
        Ok(())
    }

    fn channels(&mut self, key: u64, stdout: OwnedFd, stderr: Option<OwnedFd>) -> Result<[Channel; 2], Fault> {
        self.watch(stdout.as_fd(), Token::Output { process: key, channel: 0 })?;
        if let Some(fd) = &stderr {
            self.watch(fd.as_fd(), Token::Output { process: key, channel: 1 })?;
        }
        let closed = stderr.is_none();
        Ok([Channel { fd: Some(stdout), ..Channel::default() }, Channel { fd: stderr, closed, ..Channel::default() }])
    }

    fn plan(&mut self, p: Fields<'_>, input: bool) -> Result<(Plan, Ends, bool), Fault> {
        let user = self.users.resolve(p.opt_str("user")?.or(self.settings.user.as_deref()))?;
        let pty = p.opt_fields("pty")?;
        let term = match &pty {
            Some(pty) => Some(pty.opt_str("term")?.unwrap_or("xterm-256color")),
            None => None,
        };
        let env = self.settings.environment(&user, term, &p.environment("env")?);
        let login = p.bool_or("loginShell", false)?;
        let cwd = self.working_directory(p.opt_bytes("cwd")?, &user)?;
        let argv = p.opt_list("argv")?.unwrap_or_default();
        if argv.len() > ARGUMENT_COUNT_MAX {
            return Err(Fault::invalid_argument(format!("argv has more than {ARGUMENT_COUNT_MAX} entries")));
        }
        let (candidates, argv) = program(&argv, &env, login.then_some(user.shell.as_str()))?;
        let (stdio, ends) = match &pty {
            Some(pty) => {
                if self.place == Place::Init {
                    super::typed::look();
                }
                terminal(pty, &user)?
            }
            None => pipes(input, &self.null)?,
        };
        let plan = Plan {
            argv,
            candidates,
            env: env.lines().map(c_string).collect::<Result<_, _>>()?,
            cwd: c_string(cwd)?,
            credentials: self.credentials(&user)?,
            oom_score_adj: self.oom_score_adj.clone(),
            stdio,
            terminal: pty.is_some(),
        };
        Ok((plan, ends, pty.is_some()))
    }

    /// None where the agent's own ids are the right ones already.
    pub fn credentials(&self, user: &User) -> Result<Option<Credentials>, Fault> {
        let credentials = Credentials { uid: user.uid, gid: user.gid, groups: user.groups.clone() };
        if credentials == self.own_credentials {
            return Ok(None);
        }
        if self.own_credentials.uid != 0 {
            if user.uid == self.own_credentials.uid {
                return Ok(None);
            }
            return Err(Fault::permission_denied("user: the agent is not root here and cannot become another user"));
        }
        Ok(Some(credentials))
    }

    /// The directory to start in. What is not absolute begins at the default one.
    pub fn working_directory(&mut self, asked: Option<&[u8]>, user: &User) -> Result<Vec<u8>, Fault> {
        match asked.filter(|asked| !asked.is_empty()) {
            Some(asked) => self.absolute(asked, user),
            None => self.default_directory(user),
        }
    }

    /// Where processes start and relative paths begin: the sandbox's own directory, else the user's home.
    pub fn default_directory(&mut self, user: &User) -> Result<Vec<u8>, Fault> {
        let base = match self.settings.workdir.clone() {
            Some(workdir) => self.expand(&workdir, user)?,
            // As in sshd: the home of `nobody` is not there, and that is no reason not to run anything.
            None if std::path::Path::new(&user.home).is_dir() => user.home.as_bytes().to_vec(),
            None => b"/".to_vec(),
        };
        Ok(if base.starts_with(b"/") { base } else { [b"/", base.as_slice()].concat() })
    }

    /// A path with `~` expanded, from the default directory on when it is relative.
    pub fn absolute(&mut self, path: &[u8], user: &User) -> Result<Vec<u8>, Fault> {
        let path = self.expand(path, user)?;
        if path.starts_with(b"/") {
            return Ok(path);
        }
        let mut base = self.default_directory(user)?;
        if !base.ends_with(b"/") {
            base.push(b'/');
        }
        Ok([base, path].concat())
    }

    /// `~` and `~user` at the start of a path.
    pub fn expand(&mut self, path: &[u8], user: &User) -> Result<Vec<u8>, Fault> {
        let Some(rest) = path.strip_prefix(b"~") else { return Ok(path.to_vec()) };
        let at = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let (name, tail) = rest.split_at_checked(at).unwrap_or((rest, &[]));
        let home = match std::str::from_utf8(name) {
            Ok("") => user.home.clone(),
            Ok(name) => self.users.resolve(Some(name))?.home,
            Err(_) => return Err(Fault::invalid_argument("a path begins with ~ and a name that is not UTF-8")),
        };
        Ok([home.as_bytes(), tail].concat())
    }

    /// The thread that started the program has come back.
    pub fn process_started(&mut self, key: u64, result: Result<i32, NotStarted>) {
        self.starting = self.starting.saturating_sub(1);
        match result {
            Ok(pid) => {
                self.processes.started(key, pid);
                let Some(process) = self.processes.get_mut(key) else { return };
                if let Some(ms) = process.lifetime_ms {
                    self.timers.after(Duration::from_millis(ms), Timer::Lifetime(key));
                }
                for starter in std::mem::take(&mut process.starting) {
                    self.greet(key, starter);
                }
                // Until now nobody's place was known, and the ring may be full.
                self.read_later(key);
                if let Some(status) = self.early_exits.remove(&pid) {
                    self.process_ended(pid, status);
                }
            }
            Err(failure) => {
                let Some(process) = self.processes.remove(key) else { return };
                let fault = fault_of(&process, failure);
                for starter in process.starting {
                    self.finish_stream(starter.stream, &Err(fault.clone()));
                }
            }
        }
        if self.starting == 0 {
            self.early_exits.clear();
        }
    }
}

/// Why a program did not start, and where it should have.
pub struct NotStarted {
    failure: SpawnFailure,
    cwd: CString,
}

fn run(plan: &Plan) -> Result<i32, SpawnFailure> {
    let [stdin, stdout, stderr] = &plan.stdio;
    hutch_sys::spawn(&Program {
        candidates: &plan.candidates,
        argv: &plan.argv,
        env: &plan.env,
        cwd: &plan.cwd,
        stdin: stdin.as_fd(),
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        terminal: plan.terminal,
        credentials: plan.credentials.as_ref(),
        oom_score_adj: plan.oom_score_adj.as_deref(),
        root: None,
    })
}

fn fault_of(process: &Process, NotStarted { failure, cwd }: NotStarted) -> Fault {
    let errno = Errno::from_raw_os_error(failure.errno);
    let name = process.argv.first().map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default();
    let fault = match failure.stage {
        SpawnStage::Cwd => {
            let cwd = String::from_utf8_lossy(cwd.to_bytes());
            Fault::invalid_argument(format!("working directory {cwd}: {}", crate::fault::describe(errno)))
        }
        SpawnStage::User => Fault::invalid_argument(format!("user: {}", crate::fault::describe(errno))),
        SpawnStage::Exec if matches!(errno, Errno::NOENT | Errno::NOTDIR) => {
            Fault::not_found(format!("{name}: there is no such program in the sandbox"))
        }
        SpawnStage::Exec if errno == Errno::TOOBIG => Fault::permission_denied(format!(
            "{name} cannot be run: its arguments and environment are larger than the sandbox's kernel takes (as a rule 2 MiB in all, and 128 KiB each)"
        )),
        SpawnStage::Exec => Fault::permission_denied(format!("{name} cannot be run: {}", errno_name(errno))),
        SpawnStage::Clone => Fault::resource_exhausted(format!("no process can be started: {}", errno_name(errno))),
        SpawnStage::Terminal => Fault::internal(format!("the terminal cannot be set up: {}", errno_name(errno))),
    };
    // ENOTDIR in a search of PATH means the same to whoever typed the name.
    let errno = if fault.code == "not_found" { Errno::NOENT } else { errno };
    Fault { errno: Some(errno), ..fault }
}

/// The first words of argv; the last of them may be cut.
fn kept(argv: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut left = ARGUMENTS_KEPT_BYTES;
    let mut words = Vec::new();
    for word in argv {
        if left == 0 {
            break;
        }
        let shown = word.get(..left).unwrap_or(word);
        // An empty word costs something, too.
        left -= shown.len().max(1);
        words.push(shown.to_vec());
    }
    words
}

fn c_string(bytes: Vec<u8>) -> Result<CString, Fault> {
    CString::new(bytes).map_err(|_| Fault::invalid_argument("a NUL byte in argv, env or cwd"))
}

/// The paths to try, and argv.
fn program(argv: &[&[u8]], env: &Environment, login_shell: Option<&str>) -> Result<(Vec<CString>, Vec<CString>), Fault> {
    if let Some(shell) = login_shell {
        let name = shell.rsplit('/').next().unwrap_or(shell);
        let mut words = vec![[b"-", name.as_bytes()].concat()];
        if !argv.is_empty() {
            words.extend([b"-c".to_vec(), b"exec \"$0\" \"$@\"".to_vec()]);
        }
        words.extend(argv.iter().map(|word| word.to_vec()));
        return Ok((vec![c_string(shell.as_bytes().to_vec())?], words.into_iter().map(c_string).collect::<Result<_, _>>()?));
    }
    let name = argv.first().ok_or_else(|| Fault::invalid_argument("argv is empty"))?;
    let words = argv.iter().map(|word| c_string(word.to_vec())).collect::<Result<_, _>>()?;
    if name.contains(&b'/') {
        return Ok((vec![c_string(name.to_vec())?], words));
    }
    if name.is_empty() {
        return Ok((Vec::new(), words));
    }
    let path = env.get("PATH").unwrap_or_default();
    let candidates = path.split(|byte| *byte == b':').map(|directory| {
        let directory = if directory.is_empty() { b"." } else { directory };
        c_string([directory, b"/", name].concat())
    });
    Ok((candidates.collect::<Result<_, _>>()?, words))
}

fn failed(what: &'static str) -> impl Fn(Errno) -> Fault {
    move |errno| Fault::system(what, errno)
}

fn pipes(input: bool, null: &OwnedFd) -> Result<([OwnedFd; 3], Ends), Fault> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(failed("a pipe"));
    // Only our ends are non-blocking: the flag belongs to each end's own file description.
    let ours = |fd: &OwnedFd| rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK).map_err(failed("a pipe"));
    let (stdout, out) = pipe()?;
    let (stderr, err) = pipe()?;
    ours(&stdout)?;
    ours(&stderr)?;
    let (theirs, stdin) = if input {
        let (theirs, stdin) = pipe()?;
        ours(&stdin)?;
        (theirs, Some(stdin))
    } else {
        (rustix::io::fcntl_dupfd_cloexec(null, 3).map_err(failed("/dev/null"))?, None)
    };
    Ok(([theirs, out, err], Ends { stdin, stdout, stderr: Some(stderr) }))
}

fn terminal(pty: &Fields<'_>, user: &User) -> Result<([OwnedFd; 3], Ends), Fault> {
    let size = window_size(pty)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).map_err(failed("/dev/ptmx"))?;
    unlockpt(&master).map_err(failed("the terminal"))?;
    let slave = slave_of(&master, flags).map_err(failed("the terminal"))?;
    tcsetwinsize(&slave, size).map_err(failed("the terminal's size"))?;
    if user.uid != 0 {
        // So that the user can open /dev/tty's own path again. Not fatal: descriptors work without.
        let _ = rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(user.uid)), None);
    }
    let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(failed("the terminal"));
    rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK).map_err(failed("the terminal"))?;
    let input = copy(&master)?;
    Ok(([copy(&slave)?, copy(&slave)?, slave], Ends { stdin: Some(input), stdout: master, stderr: None }))
}

/// By the master where the kernel can, else by its name: kernels in user space lack that request.
pub fn slave_of(master: &OwnedFd, flags: OpenptFlags) -> Result<OwnedFd, Errno> {
    match ioctl_tiocgptpeer(master, flags) {
        Err(Errno::NOTTY | Errno::INVAL) => {
            let name = ptsname(master, Vec::new())?;
            open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        }
        slave => slave,
    }
}

pub fn window_size(p: &Fields<'_>) -> Result<Winsize, Fault> {
    let size = |name, default| Ok::<u16, Fault>(p.opt_u16(name)?.filter(|cells| *cells > 0).unwrap_or(default));
    Ok(Winsize { ws_col: size("cols", 80)?, ws_row: size("rows", 24)?, ws_xpixel: 0, ws_ypixel: 0 })
}
