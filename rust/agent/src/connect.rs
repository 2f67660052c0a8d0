//! `connect`: a stream of the connection joined with a socket in the sandbox.
use crate::agent::{Agent, Token};
use crate::fault::{Fault, Outcome};
use crate::jobs::Ticket;
use crate::output::{DATA_BYTES_MAX, Output};
use crate::stream::{Kind, Stream};
use crate::wire::fields::{Fields, PATH_BYTES_MAX};
use crate::wire::frame::FrameType;
use crate::wire::value::Value;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, shutdown, socket_with, sockopt};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What says that there is something to read, be it an end.
const COMES: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);
const BROKEN: EventFlags = EventFlags::HUP.union(EventFlags::ERR);

pub struct Tunnel {
    socket: OwnedFd,
    connecting: bool,
    readable: bool,
    /// Wants to hear of what comes. Not while that is known and cannot be taken: it would be told without end.
    listening: bool,
    /// What the loop is told of, level by level: a read that comes short needs no second one to find out that there is no more.
    watched: EventFlags,
    /// From the host, not yet written: at most what the stream has credit for.
    inbox: VecDeque<u8>,
    host_ended: bool,
    /// The peer reads no more, or has been told that no more comes.
    sealed: bool,
    /// The peer sends no more, and the host knows.
    peer_ended: bool,
}

impl Tunnel {
    pub fn new(socket: OwnedFd, connecting: bool) -> Tunnel {
        Tunnel {
            socket,
            connecting,
            readable: false,
            listening: true,
            watched: EventFlags::empty(),
            inbox: VecDeque::new(),
            host_ended: false,
            sealed: false,
            peer_ended: false,
        }
    }

    /// Has the loop told of what can be done next, and of nothing else.
    pub fn watch(&mut self, epoll: BorrowedFd<'_>, stream: u32) -> Result<(), Fault> {
        let mut wanted = EventFlags::empty();
        wanted.set(COMES, self.listening && !self.connecting);
        wanted.set(EventFlags::OUT, self.connecting || !self.inbox.is_empty());
        if wanted == self.watched {
            return Ok(());
        }
        let data = epoll::EventData::new_u64(Token::Tunnel { stream }.pack());
        let changed = if self.watched.is_empty() {
            epoll::add(epoll, &self.socket, data, wanted)
        } else if wanted.is_empty() {
            // That it is broken is told whatever is asked for.
            epoll::delete(epoll, &self.socket)
        } else {
            epoll::modify(epoll, &self.socket, data, wanted)
        };
        changed.map_err(|errno| Fault::system("the connection in the sandbox cannot be watched", errno))?;
        self.watched = wanted;
        Ok(())
    }

    /// Takes DATA; returns how many bytes the socket took at once.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        let direct = if self.inbox.is_empty() && !self.connecting { self.write(bytes) } else { 0 };
        self.inbox.extend(bytes.get(direct..).unwrap_or_default());
        direct
    }

    pub fn end(&mut self) {
        self.host_ended = true;
        self.flush();
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            if self.sealed {
                return bytes.len();
            }
            match rustix::io::write(&self.socket, rest) {
                Ok(count) => written += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // What the peer does not take goes nowhere; what it still says is passed on.
                Err(_) => self.sealed = true,
            }
        }
        written
    }

    /// Writes what waits; returns how many bytes that were.
    fn flush(&mut self) -> usize {
        if self.connecting {
            return 0;
        }
        let mut written = 0;
        while !self.inbox.is_empty() {
            let waiting: Vec<u8> = self.inbox.iter().take(DATA_BYTES_MAX).copied().collect();
            let count = self.write(&waiting);
            self.inbox.drain(..count);
            written += count;
            if count == 0 {
                break;
            }
        }
        if self.inbox.is_empty() && self.host_ended && !self.sealed {
            let _ = shutdown(&self.socket, Shutdown::Write);
            self.sealed = true;
        }
        written
    }

    fn all_read(&mut self) {
        self.readable = false;
        self.listening = true;
    }

    /// One frame of what the peer sent. Err: the stream is over, with this outcome.
    pub fn emit(&mut self, stream: u32, credit: u64, output: &mut Output) -> Result<(usize, bool), Outcome> {
        if self.connecting {
            return Ok((0, false));
        }
        if self.peer_ended {
            return if self.sealed || self.host_ended && self.inbox.is_empty() { Err(Ok(Value::Nil)) } else { Ok((0, false)) };
        }
        if !self.readable || credit == 0 {
            return Ok((0, false));
        }
        let limit = DATA_BYTES_MAX.min(usize::try_from(credit).unwrap_or(usize::MAX));
        let socket = &self.socket;
        match output.data_from(stream, 0, limit, |place| Ok(rustix::io::read(socket, place)?)) {
            Ok(0) => {
                self.peer_ended = true;
                self.listening = false;
                output.frame(FrameType::End, 0, stream, &[]);
                Ok((0, true))
            }
            Ok(count) if count == limit => Ok((count, true)),
            Ok(count) => {
                self.all_read();
                Ok((count, false))
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => {
                    self.all_read();
                    Ok((0, false))
                }
                Some(Errno::INTR) => Ok((0, true)),
                errno => Err(Err(Fault::system("the connection in the sandbox", errno.unwrap_or(Errno::IO)))),
            },
        }
    }
}

enum Target {
    Tcp(SocketAddr),
    Unix(SocketAddrUnix),
}

/// Names are looked up in the sandbox's /etc/hosts only: a resolver would need its libc.
fn host_address(name: &str) -> Result<IpAddr, Fault> {
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let found = hosts.lines().find_map(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word == name).then_some(address)
    });
    match found {
        Some(address) => Ok(address),
        None if name == "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        None => Err(Fault::invalid_argument(format!("tcp.host: {name:?} is no IP address and not in the sandbox's /etc/hosts"))),
    }
}

fn target(p: Fields<'_>) -> Result<Target, Fault> {
    match (p.opt_fields("tcp")?, p.opt_bytes("unix")?) {
        (Some(tcp), None) => {
            let port = tcp.opt_in("port", 1, 65_535)?.and_then(|port| u16::try_from(port).ok());
            let port = port.ok_or_else(|| Fault::invalid_argument("tcp.port is missing"))?;
            Ok(Target::Tcp(SocketAddr::new(host_address(tcp.opt_str("host")?.unwrap_or("127.0.0.1"))?, port)))
        }
        (None, Some(path)) if path.len() <= PATH_BYTES_MAX => SocketAddrUnix::new(path)
            .map(Target::Unix)
            .map_err(|_| Fault::invalid_argument("unix must be a path of at most 107 bytes")),
        _ => Err(Fault::invalid_argument("connect wants either tcp or unix")),
    }
}

impl Agent {
    pub fn connect(&mut self, ticket: Ticket, p: Fields<'_>) -> Result<(), Fault> {
        let failed = |errno| Fault::system("the connection in the sandbox", errno);
        let target = target(p)?;
        let family = match &target {
            Target::Tcp(SocketAddr::V4(_)) => AddressFamily::INET,
            Target::Tcp(SocketAddr::V6(_)) => AddressFamily::INET6,
            Target::Unix(_) => AddressFamily::UNIX,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None).map_err(failed)?;
        let connected = match &target {
            Target::Tcp(address) => {
                // Requests and answers are small and wait for each other.
                let _ = sockopt::set_tcp_nodelay(&socket, true);
                connect(&socket, address)
            }
            Target::Unix(address) => connect(&socket, address),
        };
        let connecting = match connected {
            Ok(()) => false,
            Err(Errno::INPROGRESS) => true,
            Err(errno) => return Err(failed(errno)),
        };
        let mut tunnel = Tunnel::new(socket, connecting);
        tunnel.watch(self.epoll.as_fd(), ticket.stream)?;
        self.with_stream(ticket.stream, |stream| {
            stream.kind = Kind::Tunnel(Box::new(tunnel));
            if !connecting {
                stream.reply(&Value::Nil);
            }
        });
        Ok(())
    }

    pub fn tunnel_event(&mut self, number: u32, flags: EventFlags) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        if let Kind::Listener(_) = stream.kind {
            return self.take_arrivals(number);
        }
        let Kind::Tunnel(tunnel) = &mut stream.kind else { return };
        if tunnel.connecting {
            let failure = sockopt::socket_error(&tunnel.socket).and_then(|result| result).err();
            if let Some(errno) = failure {
                self.finish_stream(number, &Err(Fault::system("the connection in the sandbox", errno)));
                return;
            }
            if !flags.contains(EventFlags::OUT) {
                return;
            }
            tunnel.connecting = false;
            stream.reply(&Value::Nil);
        }
        let Kind::Tunnel(tunnel) = &mut stream.kind else { return };
        if flags.intersects(COMES | BROKEN) {
            tunnel.listening &= !tunnel.readable;
            tunnel.readable = true;
        }
        let written = if flags.intersects(EventFlags::OUT | BROKEN) { tunnel.flush() } else { 0 };
        self.watch_tunnel(number);
        self.input_taken(number, written);
        self.ready(number);
    }

    /// To be called when what a tunnel has to be told of may have changed.
    pub fn watch_tunnel(&mut self, number: u32) {
        let Some(Stream { kind: Kind::Tunnel(tunnel), .. }) = self.streams.get_mut(&number) else { return };
        if let Err(fault) = tunnel.watch(self.epoll.as_fd(), number) {
            self.finish_stream(number, &Err(fault));
        }
    }
}
