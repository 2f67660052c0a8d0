//! MessagePack with the protocol's bounds. What breaks one is an error, never a large allocation:
//! a count is believed only as far as bytes follow.
use std::fmt;

pub const DEPTH_MAX: usize = 8;
/// What a kernel takes as one argument.
pub const STRING_BYTES_MAX: usize = 131_072;
pub const ENTRIES_MAX: usize = 65_536;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    /// Only what does not fit in an `i64`.
    UInt(u64),
    Float(f64),
    Str(String),
    Bin(Vec<u8>),
    Array(Vec<Value>),
    Map(Vec<(String, Value)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueError {
    Short,
    Trailing,
    TooDeep,
    TooLong,
    TooMany,
    NotUtf8,
    KeyNotString,
    Unsupported(u8),
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => write!(f, "the message ends too early"),
            Self::Trailing => write!(f, "bytes follow the message"),
            Self::TooDeep => write!(f, "deeper than {DEPTH_MAX} levels"),
            Self::TooLong => write!(f, "a string of more than {STRING_BYTES_MAX} bytes"),
            Self::TooMany => write!(f, "more than {ENTRIES_MAX} entries"),
            Self::NotUtf8 => write!(f, "a str that is not UTF-8"),
            Self::KeyNotString => write!(f, "a key that is not a str"),
            Self::Unsupported(byte) => write!(f, "unsupported type byte {byte:#04x}"),
        }
    }
}

/// Decodes one value that fills `bytes` exactly.
pub fn decode(bytes: &[u8]) -> Result<Value, ValueError> {
    let mut reader = Reader { rest: bytes };
    let value = reader.value(1)?;
    if reader.rest.is_empty() { Ok(value) } else { Err(ValueError::Trailing) }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ValueError> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or(ValueError::Short)?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ValueError> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(ValueError::Short)?;
        self.rest = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, ValueError> {
        let [byte] = self.array::<1>()?;
        Ok(byte)
    }

    /// A length of 1, 2 or 4 bytes.
    fn length(&mut self, width: u8) -> Result<usize, ValueError> {
        Ok(match width {
            1 => usize::from(self.u8()?),
            2 => usize::from(u16::from_be_bytes(self.array()?)),
            _ => u32::from_be_bytes(self.array()?) as usize,
        })
    }

    fn value(&mut self, depth: usize) -> Result<Value, ValueError> {
        if depth > DEPTH_MAX {
            return Err(ValueError::TooDeep);
        }
        let first = self.u8()?;
        match first {
            0x00..=0x7f => Ok(Value::Int(i64::from(first))),
            0x80..=0x8f => self.map(usize::from(first & 0x0f), depth),
            0x90..=0x9f => self.list(usize::from(first & 0x0f), depth),
            0xa0..=0xbf => self.string(usize::from(first & 0x1f)).map(Value::Str),
            0xc0 => Ok(Value::Nil),
            0xc2 => Ok(Value::Bool(false)),
            0xc3 => Ok(Value::Bool(true)),
            0xc4..=0xc6 => {
                let length = self.length(1 << (first - 0xc4))?;
                if length > STRING_BYTES_MAX {
                    return Err(ValueError::TooLong);
                }
                Ok(Value::Bin(self.take(length)?.to_vec()))
            }
            0xca => Ok(Value::Float(f64::from(f32::from_be_bytes(self.array()?)))),
            0xcb => Ok(Value::Float(f64::from_be_bytes(self.array()?))),
            0xcc => Ok(Value::Int(i64::from(self.u8()?))),
            0xcd => Ok(Value::Int(i64::from(u16::from_be_bytes(self.array()?)))),
            0xce => Ok(Value::Int(i64::from(u32::from_be_bytes(self.array()?)))),
            0xcf => Ok(Value::from(u64::from_be_bytes(self.array()?))),
            0xd0 => Ok(Value::Int(i64::from(i8::from_be_bytes(self.array()?)))),
            0xd1 => Ok(Value::Int(i64::from(i16::from_be_bytes(self.array()?)))),
            0xd2 => Ok(Value::Int(i64::from(i32::from_be_bytes(self.array()?)))),
            0xd3 => Ok(Value::Int(i64::from_be_bytes(self.array()?))),
            0xd9..=0xdb => {
                let length = self.length(1 << (first - 0xd9))?;
                self.string(length).map(Value::Str)
            }
            0xdc | 0xdd => {
                let count = self.length(2 << (first - 0xdc))?;
                self.list(count, depth)
            }
            0xde | 0xdf => {
                let count = self.length(2 << (first - 0xde))?;
                self.map(count, depth)
            }
            0xe0..=0xff => Ok(Value::Int(i64::from(i8::from_be_bytes([first])))),
            _ => Err(ValueError::Unsupported(first)),
        }
    }

    fn string(&mut self, length: usize) -> Result<String, ValueError> {
        if length > STRING_BYTES_MAX {
            return Err(ValueError::TooLong);
        }
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| ValueError::NotUtf8)?;
        Ok(text.to_owned())
    }

    fn list(&mut self, count: usize, depth: usize) -> Result<Value, ValueError> {
        if count > ENTRIES_MAX {
            return Err(ValueError::TooMany);
        }
        let mut items = Vec::with_capacity(count.min(self.rest.len()));
        for _ in 0..count {
            items.push(self.value(depth + 1)?);
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, count: usize, depth: usize) -> Result<Value, ValueError> {
        if count > ENTRIES_MAX {
            return Err(ValueError::TooMany);
        }
        let mut entries = Vec::with_capacity(count.min(self.rest.len() / 2));
        for _ in 0..count {
            let Value::Str(key) = self.value(DEPTH_MAX)? else { return Err(ValueError::KeyNotString) };
            entries.push((key, self.value(depth + 1)?));
        }
        Ok(Value::Map(entries))
    }
}

impl Value {
    pub fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
        Value::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// A path or a name: str when it is UTF-8, else bin.
    pub fn text(bytes: &[u8]) -> Value {
        match std::str::from_utf8(bytes) {
            Ok(text) => Value::Str(text.to_owned()),
            Err(_) => Value::Bin(bytes.to_vec()),
        }
    }

    /// Adds a field where there is a value for it.
    #[must_use]
    pub fn with(self, key: &str, value: Option<Value>) -> Value {
        match (self, value) {
            (Value::Map(mut entries), Some(value)) => {
                entries.push((key.to_owned(), value));
                Value::Map(entries)
            }
            (this, _) => this,
        }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.write(&mut out);
        out
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::Nil => out.push(0xc0),
            Value::Bool(false) => out.push(0xc2),
            Value::Bool(true) => out.push(0xc3),
            Value::Int(number) => write_int(out, *number),
            Value::UInt(number) => {
                out.push(0xcf);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Value::Float(number) => {
                out.push(0xcb);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Value::Str(text) => {
                write_str(out, text);
            }
            Value::Bin(bytes) => {
                match bytes.len() {
                    length @ ..=0xff => out.extend_from_slice(&[0xc4, length as u8]),
                    length @ ..=0xffff => {
                        out.push(0xc5);
                        out.extend_from_slice(&(length as u16).to_be_bytes());
                    }
                    length => {
                        out.push(0xc6);
                        out.extend_from_slice(&(length as u32).to_be_bytes());
                    }
                }
                out.extend_from_slice(bytes);
            }
            Value::Array(items) => {
                write_count(out, items.len(), 0x90, 0xdc);
                for item in items {
                    item.write(out);
                }
            }
            Value::Map(entries) => {
                write_count(out, entries.len(), 0x80, 0xde);
                for (key, value) in entries {
                    write_str(out, key);
                    value.write(out);
                }
            }
        }
    }
}

fn write_count(out: &mut Vec<u8>, count: usize, fix: u8, wide: u8) {
    match count {
        0..=15 => out.push(fix | count as u8),
        16..=0xffff => {
            out.push(wide);
            out.extend_from_slice(&(count as u16).to_be_bytes());
        }
        _ => {
            out.push(wide + 1);
            out.extend_from_slice(&(count as u32).to_be_bytes());
        }
    }
}

fn write_str(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        length @ ..=31 => out.push(0xa0 | length as u8),
        length @ ..=0xff => out.extend_from_slice(&[0xd9, length as u8]),
        length @ ..=0xffff => {
            out.push(0xda);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0xdb);
            out.extend_from_slice(&(length as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(text.as_bytes());
}

/// The shortest form, as every other MessagePack library writes it.
fn write_int(out: &mut Vec<u8>, number: i64) {
    match number {
        -32..=0x7f => out.push(number as u8),
        0x80..=0xff => out.extend_from_slice(&[0xcc, number as u8]),
        0x100..=0xffff => {
            out.push(0xcd);
            out.extend_from_slice(&(number as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xce);
            out.extend_from_slice(&(number as u32).to_be_bytes());
        }
        0x1_0000_0000.. => {
            out.push(0xcf);
            out.extend_from_slice(&(number as u64).to_be_bytes());
        }
        -0x80..=-33 => out.extend_from_slice(&[0xd0, number as u8]),
        -0x8000..=-0x81 => {
            out.push(0xd1);
            out.extend_from_slice(&(number as i16).to_be_bytes());
        }
        -0x8000_0000..=-0x8001 => {
            out.push(0xd2);
            out.extend_from_slice(&(number as i32).to_be_bytes());
        }
        ..=-0x8000_0001 => {
            out.push(0xd3);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        i64::try_from(number).map_or(Value::UInt(number), Value::Int)
    }
}

macro_rules! from_integer {
    ($($type:ty),*) => {$(
        impl From<$type> for Value {
            fn from(number: $type) -> Value { Value::Int(i64::from(number)) }
        }
    )*};
}
from_integer!(i64, u32, i32, u16, u8);

impl From<usize> for Value {
    fn from(number: usize) -> Value {
        Value::from(number as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::Str(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Value {
        Value::Str(value)
    }
}
