//! The set of pages written since the last capture.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

const PAGES_PER_CHUNK: u32 = 4096;
const WORDS_PER_CHUNK: usize = (PAGES_PER_CHUNK / 64) as usize;

/// Page numbers in ascending order: bitmaps of 4096 pages, only where there are any. A whole database of n pages costs
/// n/8 bytes; a single page 512 bytes, wherever it is.
#[derive(Debug, Default)]
pub(crate) struct DirtyPages {
    chunks: BTreeMap<u32, Box<[u64; WORDS_PER_CHUNK]>>,
    count: usize,
}

impl DirtyPages {
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number of pages.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Adds pages.
    pub(crate) fn insert(&mut self, pages: RangeInclusive<u32>) {
        for pgno in pages {
            let chunk = self.chunks.entry(pgno / PAGES_PER_CHUNK).or_insert_with(|| Box::new([0; WORDS_PER_CHUNK]));
            let bit = pgno % PAGES_PER_CHUNK;
            let word = &mut chunk[(bit / 64) as usize];
            let mask = 1_u64 << (bit % 64);
            self.count += usize::from(*word & mask == 0);
            *word |= mask;
        }
    }

    /// Pages in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.chunks.iter().flat_map(|(chunk, words)| {
            let base = chunk * PAGES_PER_CHUNK;
            words
                .iter()
                .zip((base..).step_by(64))
                .flat_map(|(word, first)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + bit))
        })
    }

    /// Forgets all pages.
    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_an_ordered_set(ranges in proptest::collection::vec((any::<u32>(), 0_u32..300), 0..20)) {
            let mut dirty = DirtyPages::default();
            let mut model = std::collections::BTreeSet::new();
            for (first, more) in ranges {
                let range = first..=first.saturating_add(more);
                dirty.insert(range.clone());
                model.extend(range);
            }
            prop_assert_eq!(dirty.len(), model.len());
            prop_assert!(dirty.iter().eq(model.iter().copied()));
            dirty.clear();
            prop_assert!(dirty.is_empty() && dirty.iter().next().is_none());
        }
    }
}
