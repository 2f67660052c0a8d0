//! A new layer: the pages of a source that differ from what is stored.
use crate::layers::{Layers, MAP};
use crate::map::{self, PAGE, Run, add, overlay, push, subtract, without};
use crate::source::Source;
use crate::writes::Writes;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::thread;

/// A write of 64 KiB gets its page cache in one piece that the kernel finds at once. For longer ones it looks for longer pieces, which on a
/// machine that has run for a while costs it several times what the copy does (docs/decisions/0034-what-a-fork-waits-for.md).
const PAGES_WRITTEN_AT_ONCE: u64 = 16;
const PAGES_AT_ONCE: u64 = 256;
/// More than this many processors at once are not faster than the memory.
const THREADS_MAX: usize = 4;
/// To begin a thread for less would take longer than it saves.
const PIECES_PER_THREAD_MIN: usize = 4;
/// A pass over fewer takes hardly longer than to ask what there is to do: another one after it would find as much again.
const PAGES_WORTH_CATCHING_UP: u64 = 1024;
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
    /// What the last pass found to be touched, and who notes what is written since; none where nobody does.
    touched: Vec<Run>,
    writes: Option<Writes>,
    notes: Notes,
    /// Pages that the last pass compared.
    compared: u64,
}

/// What becomes of the kernel's notes of what was written, beyond one take.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Notes {
    /// The last layer that is stored is of the moment since which they tell.
    pub are_there: bool,
    /// They go on, from the last pass.
    pub go_on: bool,
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

/// Pages that are read at once.
struct Piece {
    first: u64,
    pages: u64,
}

fn count(runs: &[Run]) -> u64 {
    runs.iter().map(|run| u64::from(run.pages)).sum()
}

fn pieces(runs: &[Run]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for run in runs {
        let mut first = run.first;
        while first < run.end() {
            let pages = (PAGES_AT_ONCE - first % PAGES_AT_ONCE).min(run.end() - first);
            pieces.push(Piece { first, pages });
            first += pages;
        }
    }
    pieces
}

impl Take {
    pub fn new(layers: Layers, source: Source, number: u32, mapped: u32, notes: Notes) -> Result<Take, String> {
        let path = layers.dir.join(number.to_string());
        let made = File::options().read(true).write(true).create_new(true).open(&path);
        let file = made.map_err(|error| format!("{}: {error}", path.display()))?;
        file.set_len(layers.pages * PAGE).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Take { layers, source, number, file, mapped, own: Vec::new(), touched: Vec::new(), writes: None, notes, compared: 0 })
    }

    /// Writes what differs now. Called again, it writes what has changed since; with `Again::Yes` that is made ready for.
    pub fn pass(&mut self, again: Again) -> io::Result<()> {
        let mut noted = None;
        if again == Again::Yes && self.writes.is_none() {
            if self.notes.are_there
                && let Some((writes, written)) = self.source.noted_writes(self.layers.pages)
            {
                self.writes = Some(writes);
                // What the one before has stored, and is in memory no more, was given back since.
                self.touched = self.later();
                noted = Some(written);
            } else {
                self.writes = self.source.note_writes(self.layers.pages);
            }
        } else if !(self.own.is_empty() && self.touched.is_empty()) {
            noted = self.writes.as_ref().map(Writes::since).transpose()?;
        }
        let touched = self.source.touched(self.layers.pages)?;
        self.compared = 0;
        let candidates = match noted {
            Some(written) => {
                let gone = without(&without(&self.touched, &touched.present), &written);
                self.compared += count(&gone);
                let left = without(&gone, &self.let_go(&gone)?);
                overlay(&written, &left)
            }
            None => overlay(&touched.all, &self.later()),
        };
        self.compared += count(&candidates);
        let differing = self.spread(&pieces(&candidates), |part| self.compare(part))?;
        self.touched = touched.all;
        self.own = overlay(&self.own, &differing);
        self.layers.runs = overlay(&self.layers.runs, &differing);
        for run in &differing {
            self.layers.view.lay_run(&self.file, run)?;
            if again == Again::Yes && self.writes.is_none() {
                self.layers.view.populate(run);
            }
        }
        Ok(())
    }

    /// A further pass before the last one, where it is a short one, and makes that one shorter.
    pub fn catch_up(&mut self) -> io::Result<()> {
        let is_worth_it = self.writes.is_some() && self.compared >= PAGES_WORTH_CATCHING_UP;
        if is_worth_it { self.pass(Again::Yes) } else { Ok(()) }
    }

    /// Where the layers that are stored are not what the process mapped, it may differ without having been written.
    fn later(&self) -> Vec<Run> {
        self.layers.runs.iter().filter(|run| run.layer > self.mapped).map(|run| Run { layer: 0, ..*run }).collect()
    }

    /// What was given back to the host is what was mapped there again. Nothing is stored of it any more, so the next take does not have to look
    /// at it. Gives what that is true of: what was swapped out looks the same, and what this layer has had something of stays in it.
    fn let_go(&mut self, gone: &[Run]) -> io::Result<Vec<Run>> {
        let Some(mapped) = self.source.mapped(self.mapped).filter(|_| !gone.is_empty()) else { return Ok(Vec::new()) };
        let given = Layers::below(&self.layers.dir, mapped, self.layers.pages * PAGE).map_err(io::Error::other)?;
        let back = self.spread(&pieces(gone), |part| self.find_mapped(&given, part))?;
        self.layers.runs = subtract(&self.layers.runs, &back);
        // Those of the layers that the process itself has mapped there.
        let below = subtract(&given.runs, &subtract(&given.runs, &back));
        self.layers.runs = overlay(&self.layers.runs, &below);
        self.layers.show(&back, &given, &below)?;
        Ok(back)
    }

    /// Those pages that are as the process has mapped them.
    fn find_mapped(&self, given: &Layers, pieces: &[Piece]) -> io::Result<Vec<Run>> {
        let mut found = Vec::new();
        self.for_pages(pieces, |first, bytes| {
            for (page, number) in bytes.as_chunks::<{ PAGE as usize }>().0.iter().zip(first..) {
                if given.view.page(number) == page && !self.has(number) {
                    add(&mut found, number);
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// What `work` finds in them, in order. By as many threads as there are processors: for the last pass a machine stands still.
    fn spread(&self, pieces: &[Piece], work: impl Fn(&[Piece]) -> io::Result<Vec<Run>> + Sync) -> io::Result<Vec<Run>> {
        let processors = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let each = pieces.len().div_ceil(processors).max(PIECES_PER_THREAD_MIN);
        thread::scope(|scope| {
            let mut parts = pieces.chunks(each);
            let own = parts.next().unwrap_or_default();
            let others: Vec<_> = parts.map(|part| scope.spawn(|| work(part))).collect();
            let mut found = work(own)?;
            for other in others {
                found.extend(other.join().map_err(|_| io::Error::other("a thread of it broke"))??);
            }
            Ok(found)
        })
    }

    /// What of them differs; written.
    fn compare(&self, pieces: &[Piece]) -> io::Result<Vec<Run>> {
        let mut differing = Vec::new();
        self.for_pages(pieces, |first, bytes| self.keep(first, bytes, &mut differing))?;
        Ok(differing)
    }

    fn for_pages(&self, pieces: &[Piece], mut with: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = vec![0; (PAGES_AT_ONCE * PAGE) as usize];
        for piece in pieces {
            let part = buffer.get_mut(..(piece.pages * PAGE) as usize).unwrap_or_default();
            self.source.read(piece.first, part)?;
            with(piece.first, part)?;
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
        // Else a page that is noted costs its next writer a fault for nothing.
        if let Some(writes) = self.writes.take().filter(|_| self.notes.go_on) {
            writes.keep();
        }
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
        Ok(Taken { layer: self.number, pages: count(&self.own), bytes: self.file.metadata()?.blocks() * 512 })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::Memory;
    use std::path::PathBuf;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    const PAGES: u64 = 6000;

    /// Whose notes are asked is found by the process, and the tests are one.
    static ALONE: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A small generator, so that a failure can be had again.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % end
        }
    }

    struct Place(PathBuf);

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn live(memory: &mut Memory, dice: &mut Dice) {
        for _ in 0..300 {
            let first = dice.below(PAGES);
            let byte = dice.below(3) as u8;
            let what = dice.below(4);
            for page in first..PAGES.min(first + 1 + dice.below(12)) {
                match what {
                    0 => memory.give_back(page),
                    1 => drop(std::hint::black_box(memory.page(page).to_vec())),
                    _ => memory.write(page, byte),
                }
            }
        }
    }

    fn release() -> Vec<u32> {
        let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        text.split(['.', '-']).take(2).map(|word| word.parse().unwrap()).collect()
    }

    /// With the kernel's notes of what was written, and without.
    #[test]
    fn what_is_taken_is_the_memory_of_the_last_pass() {
        let _alone = alone();
        for seed in 0..6 {
            let place = Place(std::env::temp_dir().join(format!("hutch-imprint-{}-{seed}", std::process::id())));
            fs::create_dir(&place.0).unwrap();
            let path = place.0.join("base");
            let base = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            base.set_len(PAGES * PAGE).unwrap();
            for page in (0..PAGES).filter(|page| page % 3 > 0) {
                base.write_all_at(&[page as u8; PAGE as usize], page * PAGE).unwrap();
            }
            let mut dice = Dice(seed);
            let mut memory = Memory::of(&base, PAGES);
            live(&mut memory, &mut dice);
            let source = Source::process(std::process::id() as i32, &path).unwrap();
            let mut take = Take::new(Layers::open(&place.0, PAGES * PAGE).unwrap(), source, 1, 0, Notes::default()).unwrap();
            let is_noted = seed % 2 == 0;
            take.pass(if is_noted { Again::Yes } else { Again::No }).unwrap();
            assert_eq!(take.writes.is_some(), is_noted && memory.has_faults() && release() >= vec![6, 7], "notes of {seed}");
            live(&mut memory, &mut dice);
            take.catch_up().unwrap();
            live(&mut memory, &mut dice);
            take.pass(Again::No).unwrap();
            take.finish(Lasting::No).unwrap();
            let stored = Layers::open(&place.0, PAGES * PAGE).unwrap();
            for page in 0..PAGES {
                assert!(stored.view.page(page) == memory.page(page), "page {page} of seed {seed}");
            }
        }
    }

    /// Also where the process has mapped a layer: then that is what is there.
    #[test]
    fn what_was_given_back_is_what_was_mapped_and_is_stored_no_more() {
        let _alone = alone();
        for mapped in [0, 1] {
            let place = Place(std::env::temp_dir().join(format!("hutch-imprint-back-{}-{mapped}", std::process::id())));
            fs::create_dir(&place.0).unwrap();
            let path = place.0.join("base");
            let base = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            base.set_len(PAGES * PAGE).unwrap();
            base.write_all_at(&[7; PAGE as usize], 0).unwrap();
            let mut memory = Memory::of(&base, PAGES);
            let own = place.0.join("own");
            fs::create_dir(&own).unwrap();
            fs::hard_link(&path, own.join("base")).unwrap();
            if mapped == 1 {
                let layer = File::options().read(true).write(true).create_new(true).open(place.0.join("1")).unwrap();
                layer.set_len(PAGES * PAGE).unwrap();
                layer.write_all_at(&[8; PAGE as usize], 10 * PAGE).unwrap();
                memory.map(&layer, 10, 5);
                let mut runs = Vec::new();
                push(&mut runs, 1, 10, 15);
                for dir in [&place.0, &own] {
                    fs::write(dir.join(MAP), map::encode(&runs)).unwrap();
                }
                fs::hard_link(place.0.join("1"), own.join("1")).unwrap();
            }
            let takes = |memory: &mut Memory, number: u32, between: fn(&mut Memory)| {
                let source = Source::process(std::process::id() as i32, &own.join("base")).unwrap();
                let notes = Notes { are_there: number > 2, go_on: true };
                let mut take = Take::new(Layers::open(&place.0, PAGES * PAGE).unwrap(), source, number, mapped, notes).unwrap();
                take.pass(Again::Yes).unwrap();
                between(memory);
                take.pass(Again::No).unwrap();
                let found = (take.later(), take.layers.runs.clone());
                take.finish(Lasting::No).unwrap();
                let stored = Layers::open(&place.0, PAGES * PAGE).unwrap();
                for page in 0..PAGES {
                    assert!(stored.view.page(page) == memory.page(page), "page {page} of take {number}");
                }
                found
            };
            let before = Layers::open(&place.0, PAGES * PAGE).unwrap().runs;
            (0..20).for_each(|page| memory.write(page, 3));
            takes(&mut memory, 2, |_| ());
            (0..20).for_each(|page| memory.give_back(page));
            let is_noted = memory.has_faults() && release() >= vec![6, 7];
            let (later, runs) = takes(&mut memory, 3, |memory| memory.write(30, 5));
            let page_30 = Run { layer: 3, first: 30, pages: 1 };
            if is_noted {
                assert_eq!(later, vec![Run { layer: 0, ..page_30 }]);
                assert_eq!(runs, overlay(&before, &[page_30]));
            }
            memory.write(12, 9);
            takes(&mut memory, 4, |memory| memory.give_back(12));
            takes(&mut memory, 5, |memory| memory.write(0, 1));
        }
    }

    /// Each take after the first one looks only at what was written since the one before; where nothing is noted, at everything.
    #[test]
    fn what_is_taken_again_is_the_memory_of_that_moment() {
        let _alone = alone();
        for seed in 0..6 {
            let place = Place(std::env::temp_dir().join(format!("hutch-imprint-again-{}-{seed}", std::process::id())));
            fs::create_dir(&place.0).unwrap();
            let path = place.0.join("base");
            let base = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            base.set_len(PAGES * PAGE).unwrap();
            for page in (0..PAGES).filter(|page| page % 3 > 0) {
                base.write_all_at(&[page as u8; PAGE as usize], page * PAGE).unwrap();
            }
            let mut dice = Dice(100 + seed);
            let mut memory = Memory::of(&base, PAGES);
            let mut looked_at = Vec::new();
            for number in 1..5 {
                (0..if number == 1 { 4 } else { 1 }).for_each(|_| live(&mut memory, &mut dice));
                let source = Source::process(std::process::id() as i32, &path).unwrap();
                // The third finds no notes, and must not count on any.
                if number == 3 {
                    source.forget_writes(PAGES);
                }
                let notes = Notes { are_there: number > 1, go_on: true };
                let mut take = Take::new(Layers::open(&place.0, PAGES * PAGE).unwrap(), source, number, 0, notes).unwrap();
                take.pass(Again::Yes).unwrap();
                live(&mut memory, &mut dice);
                take.catch_up().unwrap();
                live(&mut memory, &mut dice);
                take.pass(Again::No).unwrap();
                looked_at.push(take.finish(Lasting::No).unwrap().pages);
                let stored = Layers::open(&place.0, PAGES * PAGE).unwrap();
                for page in 0..PAGES {
                    assert!(stored.view.page(page) == memory.page(page), "page {page} of take {number} of seed {seed}");
                }
            }
            // Nothing was written since, so nothing is looked at: not even a page of which something else is stored.
            let run = *Layers::open(&place.0, PAGES * PAGE).unwrap().runs.last().unwrap();
            let stored = place.0.join(run.layer.to_string());
            fs::set_permissions(&stored, fs::Permissions::from_mode(0o600)).unwrap();
            let other = File::options().write(true).open(&stored).unwrap();
            other.write_all_at(&[77; PAGE as usize], run.first * PAGE).unwrap();
            let source = Source::process(std::process::id() as i32, &path).unwrap();
            let notes = Notes { are_there: true, go_on: false };
            let mut take = Take::new(Layers::open(&place.0, PAGES * PAGE).unwrap(), source, 5, 0, notes).unwrap();
            take.pass(Again::Yes).unwrap();
            let is_noted = memory.has_faults() && release() >= vec![6, 7];
            assert_eq!(take.own.is_empty(), is_noted, "seed {seed}, after {looked_at:?}");
        }
    }
}
