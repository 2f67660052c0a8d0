//! What the guest will read next: whoever reads small files in the order in which their directory was listed is sent what is in the
//! following ones, more of them as long as that goes on. The guest's kernel keeps it as if it had asked.
use crate::tree::{Tree, identity};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::{Errno, pread};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LISTINGS_MAX: usize = 8;
const NAMES_MAX: usize = 8192;
const WINDOW_MIN: usize = 4;
const WINDOW_MAX: usize = 64;
/// Others in between, like directories.
const GAP_MAX: usize = 8;
/// One page of the guest's memory.
const FILE_BYTES_MAX: i64 = 4096;
const SENT_BYTES_MAX: usize = 128 * 1024;
/// A file that was changed just now may be changed again without another time.
const SETTLED: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Listing {
    directory: u64,
    names: Vec<Vec<u8>>,
    order: HashMap<Vec<u8>, usize>,
    /// Where its next part begins.
    cookie: u64,
    /// What was sent last, and how many more will be sent then.
    sent: Range<usize>,
    window: usize,
}

impl Listing {
    fn add(&mut self, names: Vec<Vec<u8>>, cookie: u64) {
        self.cookie = cookie;
        for name in names.into_iter().filter(|name| name != b"." && name != b"..") {
            if self.names.len() < NAMES_MAX {
                self.order.insert(name.clone(), self.names.len());
                self.names.push(name);
            }
        }
    }

    /// What follows that name and is wanted too.
    fn follow(&mut self, name: &[u8]) -> Option<Range<usize>> {
        let at = *self.order.get(name)?;
        if self.sent.contains(&at) {
            return None; // it was too big, or came too late
        }
        let is_next = (self.sent.end..=self.sent.end + GAP_MAX).contains(&at);
        self.window = if is_next { (self.window * 2).clamp(WINDOW_MIN, WINDOW_MAX) } else { 0 };
        let from = at + 1;
        self.sent = from..(from + self.window).min(self.names.len());
        Some(self.sent.clone())
    }
}

#[derive(Debug, Default)]
pub struct Ahead {
    listings: VecDeque<Listing>,
    request: u64,
    wanted: Option<(u64, u64, Vec<Vec<u8>>)>,
}

impl Ahead {
    /// Of the request that is answered now.
    pub fn asked(&mut self, request: u64) {
        self.request = request;
    }

    /// A part of a directory's names, from one place in it to another.
    pub fn listed(&mut self, directory: u64, from: u64, to: u64, names: Vec<Vec<u8>>) {
        if names.is_empty() {
            return;
        }
        if from != 0 {
            if let Some(known) = self.listings.iter_mut().find(|one| one.directory == directory && one.cookie == from) {
                known.add(names, to);
            }
            return;
        }
        self.listings.retain(|one| one.directory != directory);
        if self.listings.len() >= LISTINGS_MAX {
            self.listings.pop_front();
        }
        let mut new = Listing { directory, names: Vec::new(), order: HashMap::new(), cookie: 0, sent: 0..0, window: 0 };
        new.add(names, to);
        self.listings.push_back(new);
    }

    /// A file by that name is read from its beginning.
    pub fn read(&mut self, directory: u64, name: &[u8]) {
        let Some(listing) = self.listings.iter_mut().find(|one| one.directory == directory) else { return };
        let Some(range) = listing.follow(name).filter(|range| !range.is_empty()) else { return };
        let names = listing.names.get(range).unwrap_or_default().to_vec();
        self.wanted = Some((self.request, directory, names));
    }
}

/// As messages: the number of the request that it follows, of which node it is, and all that is in it.
pub fn look_ahead(tree: &mut Tree) -> Vec<Vec<u8>> {
    let Some((request, directory, names)) = tree.ahead.wanted.take().filter(|_| tree.is_told) else { return Vec::new() };
    let mut sent = Vec::new();
    let mut bytes = 0;
    for name in names {
        let Ok((node, content)) = content(tree, directory, &name) else { continue };
        bytes += content.len();
        if bytes > SENT_BYTES_MAX {
            break;
        }
        sent.push([request.to_le_bytes().as_slice(), &node.to_le_bytes(), &content].concat());
    }
    sent
}

/// Of a small regular file that the guest knows of, and that nobody has changed just now.
fn content(tree: &Tree, directory: u64, name: &[u8]) -> Result<(u64, Vec<u8>), Errno> {
    let directory = tree.directory(directory)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let place = openat2(&directory, name, flags, Mode::empty(), beneath)?;
    let stat = fstat(&place)?;
    let node = tree.nodes.named(identity(&stat)).ok_or(Errno::NOENT)?;
    let changed = Duration::new(u64::try_from(stat.st_mtime).unwrap_or(0), u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
    let is_settled = SystemTime::now().duration_since(UNIX_EPOCH + changed).is_ok_and(|since| since > SETTLED);
    let is_small = (1..=FILE_BYTES_MAX).contains(&stat.st_size);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !is_settled || !is_small {
        return Err(Errno::INVAL);
    }
    let file = tree.reopen(&place, OFlags::RDONLY)?;
    let mut content = vec![0; usize::try_from(stat.st_size).unwrap_or(0)];
    let count = pread(&file, &mut content, 0)?;
    if count == content.len() { Ok((node, content)) } else { Err(Errno::INVAL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(count: usize) -> Ahead {
        let mut ahead = Ahead::default();
        let names = (0..count).map(|nth| nth.to_string().into_bytes()).collect::<Vec<_>>();
        let (first, second) = names.split_at(count / 2);
        ahead.listed(7, 0, 20, [b".".to_vec()].into_iter().chain(first.to_vec()).collect());
        ahead.listed(7, 20, 40, second.to_vec());
        ahead
    }

    fn wanted(ahead: &mut Ahead, name: usize) -> usize {
        ahead.read(7, name.to_string().as_bytes());
        ahead.wanted.take().map_or(0, |(_, _, names)| names.len())
    }

    #[test]
    fn more_go_along_as_long_as_they_are_read_in_order_and_none_where_they_are_not() {
        let mut ahead = of(300);
        assert_eq!(wanted(&mut ahead, 0), 4);
        assert_eq!(wanted(&mut ahead, 3), 0, "it was sent");
        assert_eq!(wanted(&mut ahead, 5), 8);
        assert_eq!(wanted(&mut ahead, 15), 16, "one was left out");
        assert_eq!(wanted(&mut ahead, 32), 32);
        assert_eq!(wanted(&mut ahead, 65), 64);
        assert_eq!(wanted(&mut ahead, 130), 64);
        assert_eq!(wanted(&mut ahead, 3), 0, "elsewhere");
        assert_eq!(wanted(&mut ahead, 200), 0);
        assert_eq!(wanted(&mut ahead, 201), 4, "in order again");
        assert_eq!(wanted(&mut ahead, 299), 0, "the last one");
        ahead.read(8, b"1");
        assert!(ahead.wanted.is_none());
    }

    #[test]
    fn no_more_is_remembered_of_lists_than_is_bounded() {
        let mut ahead = Ahead::default();
        for directory in 0..100 {
            ahead.listed(directory, 0, 1, (0..NAMES_MAX + 9).map(|nth| nth.to_string().into_bytes()).collect());
        }
        assert_eq!(ahead.listings.len(), LISTINGS_MAX);
        assert!(ahead.listings.iter().all(|one| one.names.len() == NAMES_MAX));
        ahead.listed(99, 7, 8, vec![b"other".to_vec()]);
        assert!(ahead.listings.iter().all(|one| one.cookie == 1), "that is no next part of it");
    }
}
