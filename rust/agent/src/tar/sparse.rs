//! Files with holes, as GNU tar writes them: the archive has the pieces that hold something, and a map of
//! where they belong. Its three ways to write the map: in the header and blocks after it (type `S`), in
//! PAX records (0.0 and 0.1), at the beginning of the content (1.0).
use super::header::{BLOCK, bad, number};
use crate::fault::Fault;

/// More than any file that was made to be copied has; a hostile map is no longer than this.
const PIECES_MAX: usize = 65_536;
/// Where header and extension have their pieces, 24 bytes each, and say whether more blocks follow.
const IN_HEADER: (usize, usize, usize) = (386, 4, 482);
const IN_BLOCK: (usize, usize, usize) = (0, 21, 504);
const REAL_SIZE: usize = 483;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub offset: u64,
    pub bytes: u64,
}

/// Where the rest of the map is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rest {
    #[default]
    Nowhere,
    /// In blocks between header and content.
    Blocks,
    /// At the beginning of the content.
    Content,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sparse {
    /// Of the file, holes included.
    pub size: u64,
    pub pieces: Vec<Piece>,
    pub rest: Rest,
}

fn unsigned(value: i64) -> Result<u64, Fault> {
    u64::try_from(value).map_err(|_| bad("a map of a sparse file has a negative number"))
}

impl Sparse {
    /// Of a header of type `S`.
    pub fn parse(block: &[u8; BLOCK]) -> Result<Sparse, Fault> {
        let size = unsigned(number(block.get(REAL_SIZE..REAL_SIZE + 12).unwrap_or_default(), "a size")?)?;
        let mut sparse = Sparse { size, ..Sparse::default() };
        sparse.read(block, IN_HEADER)?;
        Ok(sparse)
    }

    /// One of the blocks after it.
    pub fn extend(&mut self, block: &[u8; BLOCK]) -> Result<(), Fault> {
        self.read(block, IN_BLOCK)
    }

    fn read(&mut self, block: &[u8; BLOCK], (from, most, flag): (usize, usize, usize)) -> Result<(), Fault> {
        for entry in block.get(from..).unwrap_or_default().chunks_exact(24).take(most) {
            let (offset, bytes) = entry.split_at(12);
            if offset.first() == Some(&0) {
                break;
            }
            self.push(unsigned(number(offset, "an offset")?)?, unsigned(number(bytes, "a length")?)?)?;
        }
        self.rest = if block.get(flag).is_some_and(|more| *more != 0) { Rest::Blocks } else { Rest::Nowhere };
        Ok(())
    }

    pub fn push(&mut self, offset: u64, bytes: u64) -> Result<(), Fault> {
        if self.pieces.len() >= PIECES_MAX {
            return Err(bad(&format!("a sparse file has more than {PIECES_MAX} pieces")));
        }
        self.pieces.push(Piece { offset, bytes });
        Ok(())
    }

    /// `offset,bytes,offset,bytes…`
    pub fn push_list(&mut self, text: &str) -> Result<(), Fault> {
        let mut numbers = text.split(',').map(|word| word.parse::<u64>().map_err(|_| bad("a map of a sparse file is broken")));
        while let Some(offset) = numbers.next() {
            let bytes = numbers.next().ok_or_else(|| bad("a map of a sparse file is cut off"))??;
            self.push(offset?, bytes)?;
        }
        Ok(())
    }

    /// The map at the beginning of the content: lines with a count, then offset and length of each piece,
    /// filled up to whole blocks. Gives the bytes that it took, of at most `content`.
    pub fn read_content(&mut self, content: u64, mut next: impl FnMut() -> Result<[u8; BLOCK], Fault>) -> Result<u64, Fault> {
        let mut taken = 0u64;
        let mut numbers = Vec::new();
        let mut line = String::new();
        let mut wanted = 1;
        while numbers.len() < wanted {
            taken += BLOCK as u64;
            if taken > content {
                return Err(bad("a map of a sparse file is longer than its content"));
            }
            for byte in next()? {
                if numbers.len() >= wanted {
                    break;
                }
                if byte != b'\n' {
                    line.push(char::from(byte));
                    if line.len() > 20 {
                        return Err(bad("a map of a sparse file is no list of numbers"));
                    }
                    continue;
                }
                let number: u64 = line.parse().map_err(|_| bad("a map of a sparse file is no list of numbers"))?;
                line.clear();
                numbers.push(number);
                if numbers.len() == 1 {
                    let count = usize::try_from(number).ok().filter(|count| *count <= PIECES_MAX);
                    wanted += 2 * count.ok_or_else(|| bad(&format!("a sparse file has more than {PIECES_MAX} pieces")))?;
                }
            }
        }
        for pair in numbers.get(1..).unwrap_or_default().chunks_exact(2) {
            if let [offset, bytes] = pair {
                self.push(*offset, *bytes)?;
            }
        }
        self.rest = Rest::Nowhere;
        Ok(taken)
    }

    /// The pieces follow each other, lie in the file, and are together what the archive has.
    pub fn check(&self, content: u64) -> Result<(), Fault> {
        let broken = || bad("a map of a sparse file does not fit the file");
        let (mut end, mut sum) = (0u64, 0u64);
        for Piece { offset, bytes } in &self.pieces {
            if *offset < end {
                return Err(broken());
            }
            end = offset.checked_add(*bytes).ok_or_else(broken)?;
            sum += bytes; // no more than `end`
        }
        if end > self.size || sum != content { Err(broken()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_does_not_fit_is_refused() {
        let sparse = |size, pieces: &[(u64, u64)]| {
            let pieces = pieces.iter().map(|(offset, bytes)| Piece { offset: *offset, bytes: *bytes }).collect();
            Sparse { size, pieces, rest: Rest::Nowhere }
        };
        assert!(sparse(100, &[(0, 10), (50, 5), (100, 0)]).check(15).is_ok());
        for (wrong, content) in [
            (sparse(100, &[(0, 10), (5, 5)]), 15),
            (sparse(100, &[(96, 5)]), 5),
            (sparse(100, &[(0, 10)]), 11),
            (sparse(u64::MAX, &[(u64::MAX, 1)]), 1),
            (sparse(u64::MAX, &[(0, u64::MAX), (1, u64::MAX)]), 0),
        ] {
            assert!(wrong.check(content).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn lists_are_read_with_bounds() {
        let mut sparse = Sparse::default();
        sparse.push_list("0,1,5,2").expect("a list");
        assert_eq!(sparse.pieces, [Piece { offset: 0, bytes: 1 }, Piece { offset: 5, bytes: 2 }]);
        for text in ["", "1", "1,", "1,-2", "x,1", "1,2,3"] {
            assert!(Sparse::default().push_list(text).is_err(), "{text}");
        }
        let content = |text: &str| -> Result<(u64, Vec<Piece>), Fault> {
            let mut blocks = text.as_bytes().chunks(BLOCK).map(|chunk| {
                let mut block = [0; BLOCK];
                block.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
                block
            });
            let mut sparse = Sparse::default();
            let taken = sparse.read_content(4096, || blocks.next().ok_or_else(|| bad("the end")))?;
            Ok((taken, sparse.pieces))
        };
        assert_eq!(content("1\n7\n8\n").expect("a map"), (512, vec![Piece { offset: 7, bytes: 8 }]));
        let long = format!("100\n{}", "123456\n0\n".repeat(100));
        assert_eq!(content(&long).expect("a map").0, 1024);
        for text in
            ["", "x\n", "70000\n", "99999999999999999999999\n", "2\n1\n1\n", &format!("1000\n{}", "1234567\n".repeat(600))]
        {
            assert!(content(text).is_err(), "{text}");
        }
    }
}
