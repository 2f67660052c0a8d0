//! Which file each page of a memory or disk lies in: runs of pages, sorted, that do not overlap. What no run covers
//! is the base, or zeros. On disk: `HUTCHMAP`, then 16 bytes a run, little-endian: layer and pages (32 bits each),
//! first page (64). The preloaded library reads the same (rust/readonly).
use std::io;

pub const PAGE: u64 = 4096;
const MAGIC: &[u8] = b"HUTCHMAP";
const RUN_BYTES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub layer: u32,
    pub first: u64,
    pub pages: u32,
}

impl Run {
    pub fn end(&self) -> u64 {
        self.first + u64::from(self.pages)
    }
}

/// `pages`: of the whole; a run beyond it is refused.
pub fn parse(bytes: &[u8], pages: u64) -> io::Result<Vec<Run>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the map is damaged: {what}"));
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| wrong("it does not begin as one"))?;
    let (chunks, odd) = rest.as_chunks::<RUN_BYTES>();
    if !odd.is_empty() {
        return Err(wrong("it ends within a run"));
    }
    let mut runs: Vec<Run> = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let number = u128::from_le_bytes(*chunk);
        let run = Run { layer: number as u32, pages: (number >> 32) as u32, first: (number >> 64) as u64 };
        let after = runs.last().map_or(0, Run::end);
        if run.layer == 0 || run.pages == 0 || run.first < after || run.first >= pages || u64::from(run.pages) > pages - run.first
        {
            return Err(wrong("a run lies where none can"));
        }
        runs.push(run);
    }
    Ok(runs)
}

pub fn encode(runs: &[Run]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for run in runs {
        let number = u128::from(run.layer) | u128::from(run.pages) << 32 | u128::from(run.first) << 64;
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// `over` laid on top of `under`; both are sorted.
pub fn overlay(under: &[Run], over: &[Run]) -> Vec<Run> {
    let mut left = Vec::with_capacity(under.len() + over.len());
    let mut from = 0;
    for run in under {
        while over.get(from).is_some_and(|above| above.end() <= run.first) {
            from += 1;
        }
        let mut at = run.first;
        for above in over.iter().skip(from).take_while(|above| above.first < run.end()) {
            push(&mut left, run.layer, at, above.first);
            at = above.end();
        }
        push(&mut left, run.layer, at, run.end());
    }
    left.extend_from_slice(over);
    left.sort_unstable_by_key(|run| run.first);
    joined(left)
}

/// Runs of one layer that touch become one.
fn joined(runs: Vec<Run>) -> Vec<Run> {
    let mut done: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match done.last_mut() {
            Some(last) if last.layer == run.layer && last.end() == run.first && last.pages.checked_add(run.pages).is_some() => {
                last.pages += run.pages;
            }
            _ => done.push(run),
        }
    }
    done
}

/// Those pages of `runs` that are in no run of `others`.
pub fn without(runs: &[Run], others: &[Run]) -> Vec<Run> {
    let as_layer = |layer: u32, runs: &[Run]| -> Vec<Run> { runs.iter().map(|run| Run { layer, ..*run }).collect() };
    let mut left = overlay(&as_layer(1, runs), &as_layer(2, others));
    left.retain(|run| run.layer == 1);
    as_layer(0, &left)
}

/// `runs`, of their own layers, but for the pages that are in a run of `others`.
pub fn subtract(runs: &[Run], others: &[Run]) -> Vec<Run> {
    const NONE: u32 = u32::MAX; // a layer's number is far less
    let above: Vec<Run> = others.iter().map(|run| Run { layer: NONE, ..*run }).collect();
    let mut left = overlay(runs, &above);
    left.retain(|run| run.layer != NONE);
    left
}

/// The next page of some that are in order.
pub fn add(runs: &mut Vec<Run>, page: u64) {
    match runs.last_mut() {
        Some(last) if last.end() == page && last.pages < u32::MAX => last.pages += 1,
        _ => push(runs, 0, page, page + 1),
    }
}

/// The pages from `first` up to `end`, if there are any.
pub fn push(runs: &mut Vec<Run>, layer: u32, mut first: u64, end: u64) {
    while first < end {
        let pages = u32::try_from(end - first).unwrap_or(u32::MAX);
        runs.push(Run { layer, first, pages });
        first += u64::from(pages);
    }
}

/// So that there are at most `max` runs of `layer`, the gaps between them that are smallest are filled; gives what was filled.
pub fn fill_gaps(runs: &[Run], max: usize) -> Vec<(u64, u64)> {
    if runs.len() <= max {
        return Vec::new();
    }
    let mut gaps: Vec<(u64, u64)> = runs.windows(2).filter_map(|pair| Some((pair.first()?.end(), pair.last()?.first))).collect();
    gaps.sort_unstable_by_key(|(from, to)| to - from);
    gaps.truncate(runs.len() - max);
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(runs: &[Run], pages: usize) -> Vec<u32> {
        let mut owners = vec![0; pages];
        for run in runs {
            for page in run.first..run.end() {
                owners[page as usize] = run.layer;
            }
        }
        owners
    }

    /// Every pair of small maps, against a list with one entry a page.
    #[test]
    fn what_lies_on_top_is_what_counts() {
        let maps: Vec<Vec<Run>> = (0u32..256)
            .map(|bits| {
                let mut runs = Vec::new();
                for page in 0..8 {
                    if bits >> page & 1 == 1 {
                        push(&mut runs, 1, page, page + 1);
                    }
                }
                joined(runs)
            })
            .collect();
        for under in &maps {
            for over in maps.iter().map(|runs| runs.iter().map(|run| Run { layer: 2, ..*run }).collect::<Vec<_>>()) {
                let both = overlay(under, &over);
                let wanted: Vec<u32> = owners(under, 8)
                    .iter()
                    .zip(owners(&over, 8))
                    .map(|(&below, above)| if above > 0 { above } else { below })
                    .collect();
                assert_eq!(owners(&both, 8), wanted, "{under:?} under {over:?}");
                assert_eq!(parse(&encode(&both), 8).unwrap(), both);
            }
        }
    }

    #[test]
    fn a_damaged_map_is_refused() {
        let whole = encode(&[Run { layer: 1, first: 2, pages: 3 }, Run { layer: 2, first: 5, pages: 1 }]);
        assert!(parse(&whole, 6).is_ok());
        assert!(parse(&whole, 5).is_err(), "beyond the end");
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length], 6).is_ok(), length == 8 || length == 24, "cut at {length}");
        }
        let overlapping = encode(&[Run { layer: 1, first: 2, pages: 4 }, Run { layer: 2, first: 5, pages: 1 }]);
        assert!(parse(&overlapping, 9).is_err());
    }

    #[test]
    fn the_smallest_gaps_are_filled() {
        let mut runs = Vec::new();
        for first in [0, 2, 10, 13, 30] {
            push(&mut runs, 1, first, first + 1);
        }
        assert_eq!(fill_gaps(&runs, 5), vec![]);
        assert_eq!(fill_gaps(&runs, 3), vec![(1, 2), (11, 13)]);
    }
}
