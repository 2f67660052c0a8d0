//! `shim.sock`: who is connected, and what they ask. Clients are trusted with signals (the socket is
//! 0600) and with nothing else: lines, buffers and their number are bounded, and none is waited for.
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// With a place to spare over what a test of 100 idle ones takes; more are turned away.
const CLIENTS_MAX: usize = 128;
const LINE_BYTES_MAX: usize = 4096;

struct Client {
    stream: UnixStream,
    line: Vec<u8>,
}

pub struct Clients {
    listener: UnixListener,
    clients: Vec<Client>,
    /// What whoever comes later is told after the greeting.
    news: Vec<String>,
    /// Accepting failed for want of descriptors or memory: tried again later.
    full: bool,
}

impl Clients {
    pub fn new(listener: UnixListener) -> Self {
        Self { listener, clients: Vec::new(), news: Vec::new(), full: false }
    }

    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        let listener = (!self.full).then(|| self.listener.as_raw_fd());
        listener.into_iter().chain(self.clients.iter().map(|client| client.stream.as_raw_fd()))
    }

    pub fn is_full(&self) -> bool {
        self.full
    }

    pub fn try_again(&mut self) {
        self.full = false;
    }

    /// Takes in whoever waits, and greets them with `greeting`.
    pub fn accept(&mut self, greeting: &str) {
        for _ in 0..CLIENTS_MAX {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let mut client = Client { stream, line: Vec::new() };
                    let room = self.clients.len() < CLIENTS_MAX && client.stream.set_nonblocking(true).is_ok();
                    if room && client.say(greeting) && self.news.iter().all(|line| client.say(line)) {
                        self.clients.push(client);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.full = error.kind() != io::ErrorKind::WouldBlock;
                    return;
                }
            }
        }
    }

    /// Reads once from the clients whose descriptors are `ready`; `obey` carries out a request, and gives what it found out.
    pub fn serve(&mut self, ready: &[RawFd], mut obey: impl FnMut(Request) -> Result<Option<u32>, String>) {
        self.clients.retain_mut(|client| !ready.contains(&client.stream.as_raw_fd()) || client.serve(&mut obey));
    }

    /// Says a line to everyone, and to whoever comes later.
    pub fn tell(&mut self, line: String) {
        self.clients.retain_mut(|client| client.say(&line));
        self.news.push(line);
    }

    /// Says the last line to everyone, and hangs up.
    pub fn dismiss(mut self, greeting: &str, farewell: &str) {
        self.accept(greeting);
        for client in &mut self.clients {
            client.say(farewell);
        }
    }
}

impl Client {
    /// False: it does not take what it is told, and is given up.
    fn say(&mut self, line: &str) -> bool {
        self.stream.write_all(format!("{line}\n").as_bytes()).is_ok()
    }

    /// False: it has hung up, or is given up.
    fn serve(&mut self, obey: &mut impl FnMut(Request) -> Result<Option<u32>, String>) -> bool {
        let mut chunk = [0; LINE_BYTES_MAX];
        let count = match self.stream.read(&mut chunk) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        for byte in chunk.iter().take(count) {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > LINE_BYTES_MAX {
                    self.say("{\"ok\":false,\"error\":\"a request has at most 4096 bytes\"}");
                    return false;
                }
                continue;
            }
            let answer = match request(&self.line).and_then(&mut *obey) {
                Ok(None) => "{\"ok\":true}".to_owned(),
                Ok(Some(generation)) => format!("{{\"ok\":true,\"rulesGeneration\":{generation}}}"),
                Err(why) => format!("{{\"ok\":false,\"error\":\"{why}\"}}"),
            };
            self.line = Vec::new();
            if !self.say(&answer) {
                return false;
            }
        }
        true
    }
}

/// All that may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Signal(i32),
    /// The generation of the host's rules, as at the start with `--rules`.
    Rules,
}

/// `{"signal":"TERM"}` or `{"rules":"asked"}` and no more, whatever the spaces.
fn request(line: &[u8]) -> Result<Request, String> {
    let text: Vec<u8> = line.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if text == b"{\"rules\":\"asked\"}" {
        return Ok(Request::Rules);
    }
    let name = text.strip_prefix(b"{\"signal\":\"").and_then(|rest| rest.strip_suffix(b"\"}"));
    match name {
        Some(b"TERM") => Ok(Request::Signal(libc::SIGTERM)),
        Some(b"KILL") => Ok(Request::Signal(libc::SIGKILL)),
        Some(b"STOP") => Ok(Request::Signal(libc::SIGSTOP)),
        Some(b"CONT") => Ok(Request::Signal(libc::SIGCONT)),
        _ => Err("a request is {'signal': 'TERM' or 'KILL' or 'STOP' or 'CONT'} or {'rules': 'asked'}".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_four_signals_and_the_rules_can_be_asked_for() {
        assert_eq!(request(b" {\"signal\" : \"STOP\"}\r"), Ok(Request::Signal(libc::SIGSTOP)));
        assert_eq!(request(b"{\"rules\": \"asked\"}"), Ok(Request::Rules));
        for garbage in [&b""[..], b"{}", b"{\"signal\":\"HUP\"}", b"{\"signal\":\"TERM\"", b"\xff\xfe\0", b"{\"signal\":9}"] {
            assert!(request(garbage).is_err());
        }
    }
}
