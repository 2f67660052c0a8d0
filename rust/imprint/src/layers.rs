//! One memory or disk as it is stored: a directory with its map, its layers (files that are named by their number,
//! sparse, each page at its own place), and for a memory the `base` under them.
use crate::hash::Hash;
use crate::map::{self, PAGE, Run};
use crate::source::Mapped;
use crate::sys::{self, Mapping, Whence};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub const MAP: &str = "map";
const BASE: &str = "base";
/// Longest map that is read: a run for every other page of a terabyte would be twice as long.
const MAP_BYTES_MAX: u64 = 1 << 30;

pub struct Layers {
    pub dir: PathBuf,
    pub pages: u64,
    pub runs: Vec<Run>,
    pub view: Mapping,
}

impl Layers {
    /// What is stored there so far; without a map there are no layers.
    pub fn open(dir: &Path, bytes: u64) -> Result<Layers, String> {
        let said = |error: io::Error| format!("{}: {error}", dir.display());
        match read_map(&dir.join(MAP)) {
            Ok(map) => Layers::of(dir, map::parse(&map, bytes.div_ceil(PAGE)).map_err(said)?, bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Layers::of(dir, Vec::new(), bytes),
            Err(error) => Err(said(error)),
        }
    }

    /// What a process has mapped whose memory is stored in `dir`.
    pub fn below(dir: &Path, mapped: Mapped, bytes: u64) -> Result<Layers, String> {
        match mapped {
            Mapped::Base => Layers::of(dir, Vec::new(), bytes),
            Mapped::Layers(own) => Layers::open(&own, bytes),
        }
    }

    fn of(dir: &Path, runs: Vec<Run>, bytes: u64) -> Result<Layers, String> {
        let said = |error: io::Error| format!("{}: {error}", dir.display());
        let pages = bytes.div_ceil(PAGE);
        let mut view = Mapping::new(pages * PAGE).map_err(said)?;
        match File::open(dir.join(BASE)) {
            Ok(base) => view.lay(&base, 0, pages).map_err(said)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(said(error)),
        }
        lay_all(dir, &runs, &mut view).map_err(said)?;
        Ok(Layers { dir: dir.to_owned(), pages, runs, view })
    }

    /// Those pages are seen as in `given`, of which `runs` are the layers there.
    pub fn show(&mut self, pages: &[Run], given: &Layers, runs: &[Run]) -> io::Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        let base = File::open(given.dir.join(BASE))?;
        for run in pages {
            self.view.lay_run(&base, run)?;
        }
        lay_all(&given.dir, runs, &mut self.view)
    }

    /// A file with everything, holes where nothing is. It is on the disk when whoever needs it there has synced it.
    pub fn lay_out(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let to = File::create_new(path)?;
        to.set_len(bytes)?;
        for_each_layer(&self.dir, &self.runs, |file, run| {
            let end = (run.end() * PAGE).min(bytes);
            for_data(file, run.first * PAGE, end, |at, until| sys::copy_range(file.as_raw_fd(), to.as_raw_fd(), at, until - at))
        })
    }
}

fn read_map(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAP_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the map is too long"));
    }
    fs::read(path)
}

fn lay_all(dir: &Path, runs: &[Run], view: &mut Mapping) -> io::Result<()> {
    for_each_layer(dir, runs, |file, run| view.lay_run(file, run))
}

/// Opens each layer once.
fn for_each_layer(dir: &Path, runs: &[Run], mut with: impl FnMut(&File, &Run) -> io::Result<()>) -> io::Result<()> {
    let mut sorted: Vec<&Run> = runs.iter().collect();
    sorted.sort_by_key(|run| run.layer);
    for same in sorted.chunk_by(|a, b| a.layer == b.layer) {
        let Some(first) = same.first() else { continue };
        let file = File::open(dir.join(first.layer.to_string()))?;
        for run in same {
            with(&file, run)?;
        }
    }
    Ok(())
}

/// The parts of a file between two places that are not holes.
pub fn for_data(file: &File, from: u64, end: u64, mut with: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = from;
    while at < end {
        let Some(data) = sys::seek(file, at, Whence::Data)?.filter(|&data| data < end) else { break };
        let until = sys::seek(file, data, Whence::Hole)?.unwrap_or(end).min(end);
        with(data, until)?;
        at = until;
    }
    Ok(())
}

/// Holes that are smaller are told as data: more places than that are no use to anybody.
const HOLE_TOLD_BYTES: u64 = 64 * 1024;

/// Where in a file there is more than holes, in order.
pub fn data_of(path: &Path) -> io::Result<Vec<(u64, u64)>> {
    let file = File::open(path)?;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for_data(&file, 0, file.metadata()?.len(), |from, until| {
        match ranges.last_mut() {
            Some(last) if from - last.1 < HOLE_TOLD_BYTES => last.1 = until,
            _ => ranges.push((from, until)),
        }
        Ok(())
    })?;
    Ok(ranges)
}

/// Over the pages of a file that are not all zeros, each with its number: the same whatever of it is a hole.
pub fn hash_of(path: &Path) -> io::Result<u64> {
    const AT_ONCE: usize = 256;
    let file = File::open(path)?;
    let end = file.metadata()?.len();
    let mut hash = Hash::new();
    let mut buffer = vec![0; PAGE as usize * AT_ONCE];
    for_data(&file, 0, end, |from, until| {
        let mut at = from / PAGE * PAGE;
        while at < until {
            let wanted = usize::try_from((until - at).min(buffer.len() as u64)).unwrap_or(buffer.len());
            let part = buffer.get_mut(..wanted).unwrap_or_default();
            file.read_exact_at(part, at)?;
            let (pages, odd) = part.as_chunks::<{ PAGE as usize }>();
            let last: &[u8] = odd;
            for (page, number) in pages.iter().map(<[u8; PAGE as usize]>::as_slice).chain([last]).zip(at / PAGE..) {
                if page.iter().any(|&byte| byte != 0) {
                    let mut head = [0; 32];
                    for (slot, byte) in head.iter_mut().zip(number.to_le_bytes()) {
                        *slot = byte;
                    }
                    hash.update(&head);
                    hash.update(page);
                }
            }
            at += wanted as u64;
        }
        Ok(())
    })?;
    Ok(hash.finish())
}
