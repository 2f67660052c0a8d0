//! One 512-byte header, and the PAX records that say what does not fit into it.
use super::sparse::{Rest, Sparse};
use crate::fault::Fault;

pub const BLOCK: usize = 512;
/// A PAX or long-name record; paths are at most 4 KiB, so this is plenty.
pub const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
    /// `x`: records for the next entry.
    Pax,
    /// `g`: records for all; nothing in them is needed.
    PaxGlobal,
    /// GNU `L` and `K`: the next entry's name or link target.
    LongName,
    LongLink,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    /// Of a file with holes: where the content belongs.
    pub sparse: Option<Sparse>,
}

pub fn bad(what: &str) -> Fault {
    Fault::invalid_argument(format!("the archive cannot be read: {what}"))
}

/// A field of octal digits, or GNU's binary form with its first bit set.
pub fn number(field: &[u8], what: &str) -> Result<i64, Fault> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        let negative = first & 0x40 != 0;
        let start = if negative { i64::from(*first) - 256 } else { i64::from(first & 0x3f) };
        let value = rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)));
        return value.ok_or_else(|| bad(&format!("{what} is too large")));
    }
    let digits: Vec<u8> =
        field.iter().copied().skip_while(|byte| *byte == b' ').take_while(|byte| !matches!(byte, 0 | b' ')).collect();
    if digits.is_empty() {
        return Ok(0);
    }
    let text = std::str::from_utf8(&digits).map_err(|_| bad(what))?;
    i64::from_str_radix(text, 8).ok().filter(|value| *value >= 0).ok_or_else(|| bad(&format!("{what} is no number")))
}

/// The bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn narrow(value: i64, what: &str) -> Result<u32, Fault> {
    u32::try_from(value).map_err(|_| bad(&format!("{what} is out of range")))
}

impl Header {
    /// None for a block of zeros: the end of the archive.
    pub fn parse(block: &[u8; BLOCK]) -> Result<Option<Header>, Fault> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let field = |from: usize, length: usize| block.get(from..from + length).unwrap_or_default();
        let told = number(field(148, 8), "a checksum")?;
        let sum = |signed: bool| -> i64 {
            let byte = |byte: u8| if signed { i64::from(byte as i8) } else { i64::from(byte) };
            block.iter().enumerate().map(|(at, value)| if (148..156).contains(&at) { 32 } else { byte(*value) }).sum()
        };
        if told != sum(false) && told != sum(true) {
            return Err(bad("a checksum does not fit; is it a tar archive, not compressed?"));
        }
        let [letter] = *field(156, 1) else { return Err(bad("a header is cut off")) };
        let kind = match letter {
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'x' => Kind::Pax,
            b'g' => Kind::PaxGlobal,
            b'L' => Kind::LongName,
            b'K' => Kind::LongLink,
            other => return Err(bad(&format!("entries of type {:?} are not supported", char::from(other)))),
        };
        let mut path = text(field(0, 100)).to_vec();
        // POSIX's prefix; GNU's own format has other things in its place.
        if field(257, 6) == b"ustar\0" {
            let prefix = text(field(345, 155));
            if !prefix.is_empty() {
                path = [prefix, b"/", &path].concat();
            }
        }
        let size = u64::try_from(number(field(124, 12), "a size")?).map_err(|_| bad("a size is negative"))?;
        // Old archives say of a directory by its name alone that it is one.
        let kind = if kind == Kind::File && path.ends_with(b"/") { Kind::Directory } else { kind };
        Ok(Some(Header {
            kind,
            path,
            link: text(field(157, 100)).to_vec(),
            size,
            mode: narrow(number(field(100, 8), "a mode")? & 0o7777, "a mode")?,
            uid: narrow(number(field(108, 8), "an owner")?, "an owner")?,
            gid: narrow(number(field(116, 8), "a group")?, "a group")?,
            mtime: (number(field(136, 12), "a time")?, 0),
            device: (
                narrow(number(field(329, 8), "a device")?, "a device")?,
                narrow(number(field(337, 8), "a device")?, "a device")?,
            ),
            sparse: if letter == b'S' { Some(Sparse::parse(block)?) } else { None },
        }))
    }

    /// Takes over what PAX records say. Unknown ones are ignored.
    pub fn apply_pax(&mut self, mut records: &[u8]) -> Result<(), Fault> {
        let (mut version, mut offset, mut name) = ((0, 0), None, None);
        while !records.is_empty() {
            let (key, value, rest) = pax_record(records)?;
            records = rest;
            let value_text = || std::str::from_utf8(value).map_err(|_| bad("a PAX record"));
            let whole = || value_text()?.parse::<u64>().map_err(|_| bad("a PAX record is no number"));
            match key {
                b"path" => self.path = value.to_vec(),
                b"linkpath" => self.link = value.to_vec(),
                b"size" => self.size = whole()?,
                b"uid" => self.uid = u32::try_from(whole()?).map_err(|_| bad("an owner is out of range"))?,
                b"gid" => self.gid = u32::try_from(whole()?).map_err(|_| bad("a group is out of range"))?,
                b"mtime" => self.mtime = pax_time(value_text()?).ok_or_else(|| bad("a time"))?,
                b"GNU.sparse.major" => version.0 = whole()?,
                b"GNU.sparse.minor" => version.1 = whole()?,
                b"GNU.sparse.name" => name = Some(value.to_vec()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_mut().size = whole()?,
                b"GNU.sparse.map" => self.sparse_mut().push_list(value_text()?)?,
                b"GNU.sparse.offset" => offset = Some(whole()?),
                b"GNU.sparse.numbytes" => {
                    let at = offset.take().ok_or_else(|| bad("a map of a sparse file has no offset"))?;
                    self.sparse_mut().push(at, whole()?)?;
                }
                _ => {}
            }
        }
        match version {
            (0, 0 | 1) => {}
            (1, 0) => self.sparse_mut().rest = Rest::Content,
            (major, minor) => return Err(bad(&format!("sparse files of version {major}.{minor} are not supported"))),
        }
        // In its place `path` has a name for those who do not know of sparse files.
        if let Some(name) = name {
            self.path = name;
        }
        Ok(())
    }

    fn sparse_mut(&mut self) -> &mut Sparse {
        self.sparse.get_or_insert_default()
    }

    /// The header blocks of this entry, PAX records first where they are needed.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_with(&[])
    }

    /// With extended attributes.
    pub fn encode_with(&self, attributes: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut records = Vec::new();
        let mut record = |key: &[u8], value: &[u8]| append_record(&mut records, key, value);
        let fits = |path: &[u8]| path.len() <= 100;
        if !fits(&self.path) {
            record(b"path", &self.path);
        }
        if !fits(&self.link) {
            record(b"linkpath", &self.link);
        }
        if self.size >= 1 << 33 {
            record(b"size", self.size.to_string().as_bytes());
        }
        for (key, id) in [(b"uid", self.uid), (b"gid", self.gid)] {
            if id >= 1 << 21 {
                record(key, id.to_string().as_bytes());
            }
        }
        let (seconds, nanos) = self.mtime;
        if nanos != 0 || !(0..1 << 33).contains(&seconds) {
            record(b"mtime", time_text(seconds, nanos).as_bytes());
        }
        for (name, value) in attributes {
            record(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        let mut out = Vec::new();
        if !records.is_empty() {
            let pax = Header { path: b"pax".to_vec(), link: Vec::new(), size: records.len() as u64, mode: 0o644, ..self.clone() };
            out.extend_from_slice(&pax.block(b'x'));
            out.extend_from_slice(&records);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        let kind = match self.kind {
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::Char => b'3',
            Kind::Block => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
            _ => b'0',
        };
        out.extend_from_slice(&self.block(kind));
        out
    }

    fn block(&self, kind: u8) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8], most: usize| {
            for (to, from) in block.iter_mut().skip(at).zip(bytes.iter().take(most)) {
                *to = *from;
            }
        };
        let octal = |value: u64, digits: usize| format!("{:0digits$o}\0", value & ((1 << (3 * digits)) - 1));
        put(0, &self.path, 100);
        put(100, octal(u64::from(self.mode), 7).as_bytes(), 8);
        put(108, octal(if self.uid < 1 << 21 { u64::from(self.uid) } else { 0 }, 7).as_bytes(), 8);
        put(116, octal(if self.gid < 1 << 21 { u64::from(self.gid) } else { 0 }, 7).as_bytes(), 8);
        put(124, octal(if self.size < 1 << 33 { self.size } else { 0 }, 11).as_bytes(), 12);
        let seconds = u64::try_from(self.mtime.0).ok().filter(|seconds| *seconds < 1 << 33).unwrap_or(0);
        put(136, octal(seconds, 11).as_bytes(), 12);
        put(148, b"        ", 8);
        put(156, &[kind], 1);
        put(157, &self.link, 100);
        put(257, b"ustar\x0000", 8);
        put(329, octal(u64::from(self.device.0), 7).as_bytes(), 8);
        put(337, octal(u64::from(self.device.1), 7).as_bytes(), 8);
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let sum = format!("{sum:06o}\0 ");
        for (to, from) in block.iter_mut().skip(148).zip(sum.bytes()) {
            *to = from;
        }
        block
    }
}

/// `"<length> <key>=<value>\n"`, where the length counts itself.
fn append_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Key, value, and what follows.
fn pax_record(records: &[u8]) -> Result<Record<'_>, Fault> {
    let broken = || bad("a PAX record is broken");
    let space = records.iter().take(8).position(|byte| *byte == b' ').ok_or_else(broken)?;
    let length: usize = std::str::from_utf8(records.get(..space).unwrap_or_default())
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(broken)?;
    let record = records.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(broken)?;
    let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
    let (key, value) = record.split_at_checked(equals).ok_or_else(broken)?;
    Ok((key, value.get(1..).unwrap_or_default(), records.get(length..).unwrap_or_default()))
}

/// `1700000000.25`, and for a time before 1970 the distance to it, as in `-4.75`.
fn pax_time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let (whole, nanos): (i64, u32) = (seconds.parse().ok()?, digits.parse().ok()?);
    if text.starts_with('-') && nanos > 0 { Some((whole.checked_sub(1)?, 1_000_000_000 - nanos)) } else { Some((whole, nanos)) }
}

fn time_text(seconds: i64, nanos: u32) -> String {
    let (sign, whole, nanos) = match (seconds, nanos) {
        (i64::MIN..0, 1..) => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos),
        (i64::MIN..0, 0) => ("-", seconds.unsigned_abs(), 0),
        _ => ("", seconds.unsigned_abs(), nanos),
    };
    if nanos == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{nanos:09}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::File,
            path: b"a/b".to_vec(),
            link: Vec::new(),
            size: 5,
            mode: 0o640,
            uid: 1000,
            gid: 1001,
            mtime: (1_700_000_000, 0),
            device: (0, 0),
            sparse: None,
        }
    }

    fn parse_all(bytes: &[u8]) -> Header {
        let block = |at: usize| -> &[u8; BLOCK] { bytes[at..at + BLOCK].try_into().expect("a block") };
        let first = Header::parse(block(0)).expect("parses").expect("a header");
        if first.kind != Kind::Pax {
            return first;
        }
        let next = BLOCK + (first.size as usize).next_multiple_of(BLOCK);
        let mut header = Header::parse(block(next)).expect("parses").expect("a header");
        header.apply_pax(&bytes[BLOCK..BLOCK + first.size as usize]).expect("applies");
        header
    }

    #[test]
    fn a_header_survives_the_way_there_and_back() {
        assert_eq!(parse_all(&header().encode()), header());
        let large = Header {
            path: [b"d/".as_slice(), &[b'x'; 300], "ü".as_bytes()].concat(),
            link: vec![b'l'; 200],
            size: 1 << 40,
            uid: u32::MAX - 1,
            mtime: (-5, 250_000_000),
            kind: Kind::Symlink,
            ..header()
        };
        assert_eq!(parse_all(&large.encode()), large);
    }

    #[test]
    fn lengths_that_count_themselves_are_right_at_the_edges() {
        for length in 80..120 {
            let mut out = Vec::new();
            append_record(&mut out, b"path", &vec![b'x'; length]);
            let (key, value, rest) = pax_record(&out).expect("a record");
            assert_eq!((key, value.len(), rest.len()), (b"path".as_slice(), length, 0));
        }
    }

    #[test]
    fn what_is_broken_is_refused() {
        let mut block: [u8; BLOCK] = header().block(b'0');
        block[0] ^= 1;
        assert!(Header::parse(&block).is_err());
        assert!(Header::parse(&header().block(b'?')).is_err());
        assert_eq!(Header::parse(&[0; BLOCK]), Ok(None));
        for records in [
            "5 a=b",
            "99999999 a=b\n",
            "x a=b\n",
            "6 ab\n\n",
            "11 size=-1\n",
            "22 GNU.sparse.major=2\n",
            "28 GNU.sparse.numbytes=100\n",
        ] {
            assert!(header().apply_pax(records.as_bytes()).is_err(), "{records}");
        }
        for time in [(12, 500_000_000), (0, 1), (-1, 250_000_000), (-5, 999_999_999), (-5, 0), (1 << 40, 7), (i64::MIN, 0)] {
            assert_eq!(pax_time(&time_text(time.0, time.1)), Some(time));
        }
        assert_eq!((pax_time("12.5"), pax_time("-4.75")), (Some((12, 500_000_000)), Some((-5, 250_000_000))));
        assert_eq!(number(&[0x80, 0, 0, 1, 0], "x"), Ok(256));
        assert!(number(&[0x80 | 0x3f, 255, 255, 255, 255, 255, 255, 255, 255, 255], "x").is_err());
    }
}
