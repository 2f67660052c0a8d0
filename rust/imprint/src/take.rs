//! A new layer: the pages of a source that differ from what is stored.
use crate::layers::{Layers, MAP};
use crate::map::{self, PAGE, Run, overlay, push};
use crate::source::Source;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

/// A write of 64 KiB gets its page cache in one piece that the kernel finds at once. For longer ones it looks for longer pieces, which on a
/// machine that has run for a while costs it several times what the copy does (docs/decisions/0034-what-a-fork-waits-for.md).
const PAGES_WRITTEN_AT_ONCE: u64 = 16;
const PAGES_AT_ONCE: u64 = 256;
/// A process may have some 65,000 mappings; each run of a memory's map becomes one.
const RUNS_MAX: usize = 16_000;
/// Read by the user of every machine that maps it; the directory's name is not to be guessed.
const MODE: u32 = 0o444;
static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

pub struct Take {
    layers: Layers,
    source: Source,
    number: u32,
    file: File,
    /// Layers up to this one are what the process itself mapped: pages that it has not written are as they are there.
    mapped: u32,
    own: Vec<Run>,
}

/// Whether there is another pass.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Again {
    Yes,
    No,
}

/// Whether what is taken has to outlive the host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    Yes,
    No,
}

pub struct Taken {
    pub layer: u32,
    pub pages: u64,
    pub bytes: u64,
}

impl Take {
    pub fn new(layers: Layers, source: Source, number: u32, mapped: u32) -> Result<Take, String> {
        let path = layers.dir.join(number.to_string());
        let made = File::options().read(true).write(true).create_new(true).open(&path);
        let file = made.map_err(|error| format!("{}: {error}", path.display()))?;
        file.set_len(layers.pages * PAGE).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Take { layers, source, number, file, mapped, own: Vec::new() })
    }

    /// Writes what differs now. Called again, it writes what has changed since; with `Again::Yes` that is made ready for.
    pub fn pass(&mut self, again: Again) -> io::Result<()> {
        let touched = self.source.touched(self.layers.pages)?;
        // Where the layers that are stored are not what the process mapped, it may differ without having been written.
        let later: Vec<Run> =
            self.layers.runs.iter().filter(|run| run.layer > self.mapped).map(|run| Run { layer: 0, ..*run }).collect();
        let candidates = overlay(&touched, &later);
        let mut buffer = vec![0; (PAGES_AT_ONCE * PAGE) as usize];
        let mut differing = Vec::new();
        for run in &candidates {
            let mut at = run.first;
            while at < run.end() {
                let count = (PAGES_AT_ONCE - at % PAGES_AT_ONCE).min(run.end() - at);
                let part = buffer.get_mut(..(count * PAGE) as usize).unwrap_or_default();
                self.source.read(at, part)?;
                self.keep(at, part, &mut differing)?;
                at += count;
            }
        }
        self.own = overlay(&self.own, &differing);
        self.layers.runs = overlay(&self.layers.runs, &differing);
        for run in &differing {
            self.layers.view.lay_run(&self.file, run)?;
            if again == Again::Yes {
                self.layers.view.populate(run);
            }
        }
        Ok(())
    }

    /// Of some pages that were read, those that differ go into the layer, a run at a time.
    fn keep(&self, first: u64, bytes: &[u8], differing: &mut Vec<Run>) -> io::Result<()> {
        let (pages, _) = bytes.as_chunks::<{ PAGE as usize }>();
        let mut written = first;
        let flush = |mut from: u64, to: u64| {
            while from < to {
                let until = to.min((from / PAGES_WRITTEN_AT_ONCE + 1) * PAGES_WRITTEN_AT_ONCE);
                let part = bytes.get(((from - first) * PAGE) as usize..((until - first) * PAGE) as usize);
                self.file.write_all_at(part.unwrap_or_default(), from * PAGE)?;
                from = until;
            }
            Ok(())
        };
        for (page, number) in pages.iter().zip(first..) {
            let stored = self.layers.view.page(number);
            let differs = stored != page;
            // A page of zeros is a hole, unless this layer has had something there.
            let is_hole = differs && page == &ZEROS && !self.has(number);
            if differs {
                match differing.last_mut() {
                    Some(last) if last.end() == number && last.pages < u32::MAX => last.pages += 1,
                    _ => push(differing, self.number, number, number + 1),
                }
            }
            if !differs || is_hole {
                flush(written, number)?;
                written = number + 1;
            }
        }
        flush(written, first + pages.len() as u64)
    }

    fn has(&self, page: u64) -> bool {
        let after = self.own.partition_point(|run| run.first <= page);
        after.checked_sub(1).and_then(|at| self.own.get(at)).is_some_and(|run| page < run.end())
    }

    /// After the last pass: the map; with `Lasting::Yes` all of it is on the disk then.
    pub fn finish(mut self, lasting: Lasting) -> io::Result<Taken> {
        let synced = |file: &File| if lasting == Lasting::Yes { file.sync_all() } else { Ok(()) };
        self.join_runs()?;
        self.file.set_permissions(fs::Permissions::from_mode(MODE))?;
        synced(&self.file)?;
        let new = self.layers.dir.join("map.new");
        let file = File::create_new(&new)?;
        file.write_all_at(&map::encode(&self.layers.runs), 0)?;
        file.set_permissions(fs::Permissions::from_mode(MODE))?;
        synced(&file)?;
        fs::rename(&new, self.layers.dir.join(MAP))?;
        synced(&File::open(&self.layers.dir)?)?;
        let pages = self.own.iter().map(|run| u64::from(run.pages)).sum();
        Ok(Taken { layer: self.number, pages, bytes: self.file.metadata()?.blocks() * 512 })
    }

    /// A process can map only so many runs: where there are more, what lies between is stored again.
    fn join_runs(&mut self) -> io::Result<()> {
        let mut filled = Vec::new();
        for (from, to) in map::fill_gaps(&self.layers.runs, RUNS_MAX) {
            for page in from..to {
                self.file.write_all_at(self.layers.view.page(page), page * PAGE)?;
            }
            push(&mut filled, self.number, from, to);
        }
        if filled.is_empty() {
            return Ok(());
        }
        // The runs on both sides of a filled gap may be of other layers: then they stay runs of their own, but few.
        filled.sort_unstable_by_key(|run| run.first);
        self.own = overlay(&self.own, &filled);
        self.layers.runs = overlay(&self.layers.runs, &filled);
        Ok(())
    }
}
