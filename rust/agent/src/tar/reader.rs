//! An archive as a sequence of entries, out of chunks of any size.
use super::header::{BLOCK, EXTENSION_BYTES_MAX, Header, Kind};
use super::sparse::Rest;
use crate::fault::Fault;

/// Where the bytes come from: None is the end.
pub trait Source {
    fn next(&mut self) -> Result<Option<Vec<u8>>, Fault>;
}

pub struct Reader<S> {
    source: S,
    chunk: Vec<u8>,
    at: usize,
    pub bytes: u64,
}

fn cut() -> Fault {
    Fault::invalid_argument("the archive cannot be read: it ends in the middle of an entry")
}

impl<S: Source> Reader<S> {
    pub fn new(source: S) -> Reader<S> {
        Reader { source, chunk: Vec::new(), at: 0, bytes: 0 }
    }

    /// At most `most` bytes, at least one unless the end is reached.
    pub fn some(&mut self, most: usize) -> Result<&[u8], Fault> {
        while self.at >= self.chunk.len() {
            match self.source.next()? {
                Some(chunk) => {
                    self.bytes += chunk.len() as u64;
                    self.chunk = chunk;
                    self.at = 0;
                }
                None => return Ok(&[]),
            }
        }
        let from = self.at;
        self.at = self.chunk.len().min(from.saturating_add(most));
        Ok(self.chunk.get(from..self.at).unwrap_or_default())
    }

    /// Fills `place`; false when the end comes before its first byte.
    fn fill(&mut self, place: &mut [u8]) -> Result<bool, Fault> {
        let mut filled = 0;
        while let Some(rest) = place.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let some = self.some(rest.len())?;
            if some.is_empty() {
                return if filled == 0 { Ok(false) } else { Err(cut()) };
            }
            rest.iter_mut().zip(some).for_each(|(to, from)| *to = *from);
            filled += some.len();
        }
        Ok(true)
    }

    pub fn skip(&mut self, mut bytes: u64) -> Result<(), Fault> {
        while bytes > 0 {
            let count = self.some(usize::try_from(bytes).unwrap_or(usize::MAX))?.len() as u64;
            if count == 0 {
                return Err(cut());
            }
            bytes -= count;
        }
        Ok(())
    }

    /// What fills up the last block of `size` bytes.
    pub fn skip_padding(&mut self, size: u64) -> Result<(), Fault> {
        self.skip((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64)
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        if size > EXTENSION_BYTES_MAX {
            return Err(Fault::invalid_argument(format!(
                "the archive cannot be read: an extension of more than {EXTENSION_BYTES_MAX} bytes"
            )));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        if !bytes.is_empty() && !self.fill(&mut bytes)? {
            return Err(cut());
        }
        self.skip_padding(size)?;
        Ok(bytes)
    }

    /// Of a file with holes: reads the rest of its map, after which its size is that of the pieces.
    fn map(&mut self, header: &mut Header) -> Result<(), Fault> {
        let Some(sparse) = &mut header.sparse else { return Ok(()) };
        while sparse.rest == Rest::Blocks {
            sparse.extend(&self.block()?)?;
        }
        if sparse.rest == Rest::Content {
            header.size -= sparse.read_content(header.size, || self.block())?;
        }
        sparse.check(header.size)
    }

    fn block(&mut self) -> Result<[u8; BLOCK], Fault> {
        let mut block = [0; BLOCK];
        if self.fill(&mut block)? { Ok(block) } else { Err(cut()) }
    }

    /// The next entry with all that its extensions say; its content is to be read next. None at the
    /// end, after which everything was read.
    pub fn entry(&mut self) -> Result<Option<Header>, Fault> {
        let (mut pax, mut long_name, mut long_link) = (None, None, None);
        let name = |bytes: Vec<u8>| bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        loop {
            let mut block = [0; BLOCK];
            let header = if self.fill(&mut block)? { Header::parse(&block)? } else { None };
            let Some(mut header) = header else {
                if pax.is_some() || long_name.is_some() || long_link.is_some() {
                    return Err(cut());
                }
                // The rest is padding: tar fills up its last record.
                while !self.some(usize::MAX)?.is_empty() {}
                return Ok(None);
            };
            match header.kind {
                Kind::Pax => pax = Some(self.extension(header.size)?),
                Kind::PaxGlobal => {
                    self.extension(header.size)?;
                }
                Kind::LongName => long_name = Some(name(self.extension(header.size)?)),
                Kind::LongLink => long_link = Some(name(self.extension(header.size)?)),
                _ => {
                    if let Some(name) = long_name {
                        header.path = name;
                    }
                    if let Some(link) = long_link {
                        header.link = link;
                    }
                    if let Some(pax) = pax {
                        header.apply_pax(&pax)?;
                    }
                    if header.kind == Kind::Directory {
                        self.skip(header.size)?;
                        self.skip_padding(header.size)?;
                    }
                    if header.kind == Kind::File {
                        self.map(&mut header)?;
                    } else {
                        // Links and devices have no content, whatever their size says.
                        header.size = 0;
                    }
                    return Ok(Some(header));
                }
            }
        }
    }
}
