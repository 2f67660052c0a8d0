//! An agent as a plain process of this machine, and a host's end of the protocol to talk to it.
#![allow(dead_code, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
use hutch_agent::wire::value::{Value, decode};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const OPEN: u8 = 1;
pub const REPLY: u8 = 2;
pub const DATA: u8 = 3;
pub const EVENT: u8 = 4;
pub const CREDIT: u8 = 5;
pub const END: u8 = 6;
pub const CANCEL: u8 = 7;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;
pub const PART: u8 = 11;
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flag: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn message(&self) -> Value {
        decode(&self.payload).expect("a message")
    }
}

pub struct Agent {
    child: Child,
    listener: UnixListener,
    pub dir: PathBuf,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Agent {
    pub fn start() -> Agent {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("hutch-agent-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let socket = dir.join("agent.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let child = Command::new(env!("CARGO_BIN_EXE_hutch-agent"))
            .arg("--connect")
            .arg(&socket)
            .arg("--root")
            .arg("/")
            .arg("--logs")
            .arg(dir.join("logs"))
            .stdin(Stdio::null())
            // Not inherited: a runner may hand its tests a socket, and tests count the agent's sockets.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the agent starts");
        Agent { child, listener, dir }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The agent's next connection, greeted.
    pub fn accept(&self) -> Client {
        let (stream, _) = self.listener.accept().expect("the agent connects");
        Client::greet(stream)
    }

    pub fn accept_raw(&self) -> UnixStream {
        self.listener.accept().expect("the agent connects").0
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    pub fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("waits") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the agent does not end");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // TERM ends it with everything that it started; KILL is for an agent that hangs.
        if let (Ok(None), Some(pid)) = (self.child.try_wait(), rustix::process::Pid::from_raw(self.child.id() as i32)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub struct Client {
    stream: UnixStream,
    mark: [u8; 4],
    next: u32,
    buffer: Vec<u8>,
    pub aside: VecDeque<Frame>,
}

static NONCE: AtomicU64 = AtomicU64::new(0x1234_5678);

pub fn preamble(nonce: [u8; 8]) -> Vec<u8> {
    [b"HUTCH\x01\r\n".as_slice(), &nonce].concat()
}

pub fn new_nonce() -> [u8; 8] {
    NONCE.fetch_add(0x9e37_79b9, Ordering::Relaxed).to_le_bytes()
}

impl Client {
    pub fn greet(stream: UnixStream) -> Client {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        let nonce = new_nonce();
        let mut client = Client { stream, mark: [0; 4], next: 1, buffer: Vec::new(), aside: VecDeque::new() };
        client.reconnect(nonce);
        client
    }

    /// A new connection over the same bytes, with whatever lies in them.
    pub fn reconnect(&mut self, nonce: [u8; 8]) {
        self.mark.copy_from_slice(&nonce[..4]);
        self.next = 1;
        self.aside.clear();
        let wanted = preamble(nonce);
        self.stream.write_all(&wanted).expect("writes");
        loop {
            if let Some(at) = self.buffer.windows(16).position(|window| window == wanted) {
                self.buffer.drain(..at + 16);
                return;
            }
            self.more();
        }
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("writes");
    }

    pub fn try_raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    fn more(&mut self) {
        let mut chunk = [0; 65536];
        let count = self.stream.read(&mut chunk).expect("the agent says something in time");
        assert!(count > 0, "the agent hung up");
        self.buffer.extend_from_slice(&chunk[..count]);
    }

    pub fn bytes(kind: u8, stream: u32, flag: u8, payload: &[u8], mark: [u8; 4]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&[kind, flag, 0, 0]);
        bytes.extend_from_slice(&stream.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(&mark);
        bytes
    }

    pub fn send(&mut self, kind: u8, stream: u32, payload: &[u8]) {
        let bytes = Client::bytes(kind, stream, 0, payload, self.mark);
        self.raw(&bytes);
    }

    pub fn receive(&mut self) -> Frame {
        if let Some(frame) = self.aside.pop_front() {
            return frame;
        }
        loop {
            if self.buffer.len() >= 12 {
                let length = u32::from_le_bytes(self.buffer[..4].try_into().expect("four")) as usize;
                if self.buffer.len() >= length + 16 {
                    let stream = u32::from_le_bytes(self.buffer[8..12].try_into().expect("four"));
                    let frame = Frame {
                        kind: self.buffer[4],
                        flag: self.buffer[5],
                        stream,
                        payload: self.buffer[12..12 + length].to_vec(),
                    };
                    assert_eq!(self.buffer[12 + length..16 + length], self.mark, "the mark");
                    self.buffer.drain(..16 + length);
                    return frame;
                }
            }
            self.more();
        }
    }

    /// The next frame of one stream; others are kept for later.
    pub fn next_of(&mut self, stream: u32) -> Frame {
        if let Some(at) = self.aside.iter().position(|frame| frame.stream == stream) {
            return self.aside.remove(at).expect("it is there");
        }
        let mut others = std::mem::take(&mut self.aside);
        let found = loop {
            let frame = self.receive();
            if frame.stream == stream {
                break frame;
            }
            others.push_back(frame);
        };
        others.append(&mut self.aside);
        self.aside = others;
        found
    }

    pub fn open(&mut self, method: &str, params: Value) -> u32 {
        let stream = self.next;
        self.next += 1;
        let request = Value::map([("m", method.into()), ("p", params)]);
        self.send(OPEN, stream, &request.encode());
        stream
    }

    /// REPLY or the first frame of `stream`: Ok or the error.
    pub fn reply(&mut self, stream: u32) -> Result<Value, Value> {
        let frame = self.next_of(stream);
        assert_eq!(frame.kind, REPLY, "{frame:?}");
        if frame.flag == 0 { Ok(frame.message()) } else { Err(frame.message()) }
    }

    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        let stream = self.open(method, params);
        self.reply(stream)
    }

    pub fn credit(&mut self, stream: u32, bytes: usize) {
        self.send(CREDIT, stream, &(bytes as u32).to_le_bytes());
    }

    /// Reads to the CLOSE, granting what is read.
    pub fn rest(&mut self, stream: u32) -> Rest {
        let mut rest = Rest::default();
        loop {
            let frame = self.next_of(stream);
            match frame.kind {
                DATA => {
                    self.credit(stream, frame.payload.len());
                    rest.data[usize::from(frame.flag)].extend_from_slice(&frame.payload);
                }
                EVENT => rest.events.push(frame.message()),
                END => rest.ends.push(frame.flag),
                CREDIT => {}
                CLOSE => {
                    rest.close = if frame.flag == 0 { Ok(frame.message()) } else { Err(frame.message()) };
                    return rest;
                }
                other => panic!("a frame of type {other}"),
            }
        }
    }

    pub fn run(&mut self, id: &str, argv: &[&str]) -> Rest {
        let stream = self.open("process.start", start(id, argv));
        self.reply(stream).expect("it starts");
        self.rest(stream)
    }
}

#[derive(Debug)]
pub struct Rest {
    pub data: [Vec<u8>; 3],
    pub events: Vec<Value>,
    pub ends: Vec<u8>,
    pub close: Result<Value, Value>,
}

impl Default for Rest {
    fn default() -> Rest {
        Rest { data: Default::default(), events: Vec::new(), ends: Vec::new(), close: Ok(Value::Nil) }
    }
}

impl Rest {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.data[1]).into_owned()
    }

    pub fn field(&self, name: &str) -> Value {
        self.close.as_ref().expect("no error").get(name).cloned().unwrap_or(Value::Nil)
    }
}

pub fn strings(words: &[&str]) -> Value {
    Value::Array(words.iter().map(|word| (*word).into()).collect())
}

pub fn start(id: &str, argv: &[&str]) -> Value {
    Value::map([("id", id.into()), ("argv", strings(argv)), ("stdin", "null".into()), ("whenUnread", "block".into())])
}

pub fn shell(id: &str, script: &str) -> Value {
    start(id, &["sh", "-c", script])
}

pub fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(hutch_agent::wire::fields::number_of).unwrap_or_else(|| panic!("{name} in {value:?}"))
}

pub fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::Str(text)) => text.clone(),
        other => panic!("{name} is {other:?} in {value:?}"),
    }
}

/// Waits until `look` finds something.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

/// Parameters that are a path alone.
pub fn at(path: &str) -> Value {
    Value::map([("path", path.into())])
}

/// A call that takes bytes, within what it may be sent; how it ended.
pub fn upload(client: &mut Client, method: &str, params: Value, content: &[u8]) -> Result<Value, Value> {
    let stream = client.open(method, params);
    let mut window = 262_144usize;
    let mut rest = content;
    while !rest.is_empty() {
        let count = rest.len().min(60_000).min(window);
        if count > 0 {
            client.send(DATA, stream, &rest[..count]);
            rest = &rest[count..];
            window -= count;
            continue;
        }
        let frame = client.next_of(stream);
        match frame.kind {
            CREDIT => window += u32::from_le_bytes(frame.payload.try_into().expect("four bytes")) as usize,
            REPLY if frame.flag == 0 => {}
            _ => return Err(frame.message()),
        }
    }
    client.send(END, stream, b"");
    loop {
        let frame = client.next_of(stream);
        match frame.kind {
            CREDIT => {}
            REPLY if frame.flag == 0 => {}
            CLOSE if frame.flag == 0 => return Ok(frame.message()),
            _ => return Err(frame.message()),
        }
    }
}

/// A call that gives bytes, and how it ended.
pub fn download(client: &mut Client, method: &str, params: Value) -> Result<(Vec<u8>, Value), Value> {
    let stream = client.open(method, params);
    client.reply(stream)?;
    let rest = client.rest(stream);
    let [content, ..] = rest.data;
    rest.close.map(|close| (content, close))
}
