//! The FUSE protocol as bytes: what a request says, read with its bounds, and replies. Field order is that of `linux/fuse.h`.
use rustix::fs::Stat;
use rustix::io::Errno;

pub const MAJOR: u32 = 7;
/// The first with `FUSE_INIT` of today's length and `FUSE_MAX_PAGES`.
pub const MINOR_MIN: u32 = 28;
const MINOR: u32 = 36;

pub const HEADER_BYTES: usize = 40;
/// Of what one request reads or writes.
pub const DATA_BYTES_MAX: usize = 1 << 20;
pub const MESSAGE_BYTES_MAX: usize = DATA_BYTES_MAX + 8192;
pub const NAME_BYTES_MAX: usize = 255;

pub type Answer = Result<Vec<u8>, Errno>;

/// Who asks for what, of which node.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
}

/// Reads fields one after another; what is not there is a bad request.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.take(4)?.try_into().map(u32::from_le_bytes).map_err(|_| Errno::INVAL)
    }

    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.take(8)?.try_into().map(u64::from_le_bytes).map_err(|_| Errno::INVAL)
    }

    /// Up to a NUL, which must be there.
    pub fn text(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        let text = self.take(end)?;
        self.take(1)?;
        Ok(text)
    }

    /// One part of a path, and no way out of it.
    pub fn name(&mut self) -> Result<&'a [u8], Errno> {
        let name = self.text()?;
        match name {
            b"" | b"." | b".." => Err(Errno::INVAL),
            _ if name.contains(&b'/') => Err(Errno::INVAL),
            _ if name.len() > NAME_BYTES_MAX => Err(Errno::NAMETOOLONG),
            _ => Ok(name),
        }
    }

    pub fn header(&mut self) -> Result<Header, Errno> {
        let _length = self.u32()?;
        let header = Header { opcode: self.u32()?, unique: self.u64()?, node: self.u64()?, uid: self.u32()?, gid: self.u32()? };
        self.take(8)?;
        Ok(header)
    }
}

/// Writes fields one after another.
#[derive(Default)]
pub struct Out(pub Vec<u8>);

impl Out {
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn done(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// As the guest is to see it.
pub struct Seen {
    pub stat: Stat,
    pub ino: u64,
    pub uid: u32,
    pub gid: u32,
}

pub fn attributes(out: &mut Out, Seen { stat, ino, uid, gid }: &Seen) {
    out.u64(*ino).u64(stat.st_size as u64).u64(stat.st_blocks as u64);
    out.u64(stat.st_atime as u64).u64(stat.st_mtime as u64).u64(stat.st_ctime as u64);
    out.u32(low(stat.st_atime_nsec)).u32(low(stat.st_mtime_nsec)).u32(low(stat.st_ctime_nsec));
    out.u32(stat.st_mode).u32(u32::try_from(stat.st_nlink).unwrap_or(u32::MAX)).u32(*uid).u32(*gid);
    // Of devices, none of which can be opened.
    out.u32(0).u32(u32::try_from(stat.st_blksize).unwrap_or(4096)).u32(0);
}

fn low(nanoseconds: u64) -> u32 {
    u32::try_from(nanoseconds).unwrap_or(0)
}

/// Zero for a name that is not there, which may be remembered too.
pub fn entry(out: &mut Out, node: u64, valid_ms: u32, attributes_ms: u32, seen: Option<&Seen>) {
    let (name, attributes_hold) = (valid(valid_ms), valid(attributes_ms));
    out.u64(node).u64(0).u64(name.0).u64(attributes_hold.0).u32(name.1).u32(attributes_hold.1);
    match seen {
        Some(seen) => attributes(out, seen),
        None => {
            out.bytes(&[0; 88]);
        }
    }
}

pub fn attributes_answer(valid_ms: u32, seen: &Seen) -> Vec<u8> {
    let (seconds, nanoseconds) = valid(valid_ms);
    let mut out = Out::default();
    out.u64(seconds).u32(nanoseconds).u32(0);
    attributes(&mut out, seen);
    out.done()
}

fn valid(ms: u32) -> (u64, u32) {
    (u64::from(ms / 1000), ms % 1000 * 1_000_000)
}

const ASYNC_READ: u32 = 1;
const BIG_WRITES: u32 = 1 << 5;
const AUTO_INVALIDATE: u32 = 1 << 12;
const READDIRPLUS: u32 = 1 << 13;
const NO_OPEN: u32 = 1 << 17;
const PARALLEL_DIRECTORIES: u32 = 1 << 18;
const MAX_PAGES: u32 = 1 << 22;

/// What both sides can: `FUSE_INIT`. A list of names has what they are with it, as whoever lists them mostly looks at them next. No cache of writes: what is written is on this machine when the write returns.
pub fn init(fields: &mut Fields<'_>) -> Answer {
    let (major, minor, readahead, flags) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
    let wanted = ASYNC_READ | BIG_WRITES | AUTO_INVALIDATE | READDIRPLUS | NO_OPEN | PARALLEL_DIRECTORIES | MAX_PAGES;
    if major != MAJOR || minor < MINOR_MIN || flags & NO_OPEN == 0 {
        return Err(Errno::PROTO);
    }
    let mut out = Out::default();
    out.u32(MAJOR).u32(MINOR.min(minor)).u32(readahead.min(DATA_BYTES_MAX as u32)).u32(flags & wanted);
    out.u16(64).u16(48).u32(DATA_BYTES_MAX as u32).u32(1).u16((DATA_BYTES_MAX / 4096) as u16).u16(0).bytes(&[0; 32]);
    Ok(out.done())
}

/// Of a whole message.
pub fn message(mount: u32, unique: u64, answer: &Answer) -> Vec<u8> {
    let (error, body) = match answer {
        Ok(body) => (0, body.as_slice()),
        Err(errno) => (-errno.raw_os_error(), [].as_slice()),
    };
    let mut out = Out(Vec::with_capacity(20 + body.len()));
    out.u32(mount).u32(16 + body.len() as u32).bytes(&error.to_le_bytes()).u64(unique).bytes(body);
    out.done()
}
