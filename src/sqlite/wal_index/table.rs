//! One segment of the wal-index: page numbers by frame, and the hash table from page number to frame.

use std::io;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

/// Length of a segment in bytes.
pub const SEGMENT_LEN: usize = 32_768;
/// Length of a segment in words of 4 bytes.
pub const SEGMENT_WORDS: usize = SEGMENT_LEN / 4;
/// Page numbers in every segment but the first.
pub(super) const PAGES: u32 = 4096;
/// Words that the headers and the checkpoint information take from the first segment's page numbers.
pub(super) const RESERVED_WORDS: u32 = 34;
/// Page numbers in the first segment.
const PAGES_FIRST: u32 = PAGES - RESERVED_WORDS;
const SLOTS: u32 = 8192;

/// The segment that holds `frame` (from 1; 0 gives the first).
#[must_use]
pub const fn segment_of(frame: u32) -> usize {
    ((frame.saturating_sub(1) as u64 + RESERVED_WORDS as u64) / PAGES as u64) as usize
}

/// A view of one segment. Every access is atomic: other processes read and write the same memory.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    words: &'a [AtomicU32; SEGMENT_WORDS],
    segment: usize,
}

impl<'a> Table<'a> {
    /// A view of a mapped segment.
    ///
    /// # Safety
    /// `base` points to [`SEGMENT_LEN`] bytes, 4-byte aligned, that stay mapped readable and writable for `'a` and are accessed
    /// by this process through atomics only.
    pub(super) const unsafe fn from_raw(base: *mut AtomicU32, segment: usize) -> Self {
        // SAFETY: the caller vouches for length, alignment and lifetime; atomics may be shared.
        Self { words: unsafe { &*base.cast::<[AtomicU32; SEGMENT_WORDS]>() }, segment }
    }

    /// A view of a segment in private memory, as recovery builds one.
    pub(super) const fn from_words(words: &'a [AtomicU32; SEGMENT_WORDS], segment: usize) -> Self {
        Self { words, segment }
    }

    /// All words of the segment.
    pub(super) const fn words(&self) -> &'a [AtomicU32; SEGMENT_WORDS] {
        self.words
    }

    /// The frame before the segment's first.
    const fn frame_base(&self) -> u32 {
        if self.segment == 0 { 0 } else { PAGES_FIRST + (self.segment as u32 - 1) * PAGES }
    }

    const fn reserved(&self) -> u32 {
        if self.segment == 0 { RESERVED_WORDS } else { 0 }
    }

    /// The page number of the segment's frame `index` (from 1).
    fn page(&self, index: u32) -> Option<&AtomicU32> {
        let at = self.reserved() + index.checked_sub(1)?;
        self.words[..PAGES as usize].get(at as usize)
    }

    fn slot(&self, slot: u32) -> &AtomicU16 {
        let at = PAGES as usize * 2 + (slot % SLOTS) as usize;
        // SAFETY: word 4096 to 8191 are the 8192 slots of 2 bytes, so half-word `at` < 16384 lies within `words` and is aligned.
        // SQLite writes slots as 16 bits too; this process reads a slot's word as 32 bits only in `clear` and in recovery,
        // whole-word stores that no 16-bit access of ours races with (WRITE is held).
        unsafe { &*self.words.as_ptr().cast::<AtomicU16>().add(at) }
    }

    const fn first_slot(pgno: u32) -> u32 {
        pgno.wrapping_mul(383) % SLOTS
    }

    /// The page that `frame` holds; 0 for a frame outside of the segment.
    #[must_use]
    pub fn page_of(&self, frame: u32) -> u32 {
        frame
            .checked_sub(self.frame_base())
            .and_then(|index| self.page(index))
            .map_or(0, |page| page.load(Ordering::Relaxed))
    }

    /// The latest frame within `frame_min…frame_max` in this segment that holds the page.
    ///
    /// # Errors
    /// `InvalidData` when the hash table has no free slot, as only damage explains.
    pub fn find(&self, pgno: u32, frame_min: u32, frame_max: u32) -> io::Result<Option<u32>> {
        let mut found = None;
        let mut slot = Self::first_slot(pgno);
        for _ in 0..SLOTS {
            let index = self.slot(slot).load(Ordering::Acquire);
            if index == 0 {
                return Ok(found);
            }
            let index = u32::from(index);
            let frame = self.frame_base() + index;
            let same = self.page(index).is_some_and(|page| page.load(Ordering::Relaxed) == pgno);
            if same && frame >= frame_min && frame <= frame_max {
                found = Some(frame);
            }
            slot = (slot + 1) % SLOTS;
        }
        Err(damaged("has no free slot"))
    }

    /// Enters a frame: zeroes the segment before its first one, cleans what a rolled-back transaction left, then writes the
    /// page number and after it the slot.
    ///
    /// # Errors
    /// `InvalidData` when the frame is not in this segment or the hash table is damaged.
    pub fn append(&self, frame: u32, pgno: u32) -> io::Result<()> {
        let index = frame.wrapping_sub(self.frame_base());
        let page = self.page(index).ok_or_else(|| damaged("does not hold the frame"))?;
        if index == 1 {
            self.clear();
        } else if page.load(Ordering::Relaxed) != 0 {
            self.forget_from(index);
        }
        let mut slot = Self::first_slot(pgno);
        // A segment with `index - 1` entries has at most that many slots in use.
        for _ in 0..=index {
            if self.slot(slot).load(Ordering::Relaxed) == 0 {
                page.store(pgno, Ordering::Relaxed);
                let entry = u16::try_from(index).map_err(|_| damaged("has an index beyond 16 bits"))?;
                self.slot(slot).store(entry, Ordering::Release);
                return Ok(());
            }
            slot = (slot + 1) % SLOTS;
        }
        Err(damaged("has more entries than frames"))
    }

    fn clear(&self) {
        for word in &self.words[self.reserved() as usize..] {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Removes entries for frame `index` and later ones.
    fn forget_from(&self, index: u32) {
        for slot in 0..SLOTS {
            let slot = self.slot(slot);
            if u32::from(slot.load(Ordering::Relaxed)) >= index {
                slot.store(0, Ordering::Relaxed);
            }
        }
        let mut index = index;
        while let Some(page) = self.page(index) {
            page.store(0, Ordering::Relaxed);
            index += 1;
        }
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("wal-index segment {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private() -> Box<[AtomicU32; SEGMENT_WORDS]> {
        Box::new(std::array::from_fn(|_| AtomicU32::new(0)))
    }

    #[test]
    fn frames_fall_into_the_segments_sqlite_puts_them_in() {
        assert_eq!((segment_of(1), segment_of(4062)), (0, 0));
        assert_eq!((segment_of(4063), segment_of(4062 + 4096)), (1, 1));
        assert_eq!(segment_of(4062 + 4096 + 1), 2);
    }

    #[test]
    fn a_full_segment_finds_every_page_and_the_latest_frame() {
        for segment in [0, 1, 7] {
            let words = private();
            let table = Table::from_words(&words, segment);
            let base = table.frame_base();
            let count = if segment == 0 { 4062 } else { 4096 };
            for index in 1..=count {
                table.append(base + index, index % 1000 + 1).unwrap();
            }
            assert!(table.append(base + count + 1, 1).is_err());
            for pgno in 1..=1000 {
                let frame = table.find(pgno, 1, u32::MAX).unwrap().unwrap();
                assert_eq!(table.page_of(frame), pgno);
                assert!(frame + 1000 > base + count, "the latest");
                let earlier = table.find(pgno, 1, frame - 1).unwrap().unwrap();
                assert_eq!(table.page_of(earlier), pgno);
            }
            assert_eq!(table.find(1001, 1, u32::MAX).unwrap(), None);
        }
    }

    #[test]
    fn leftovers_of_a_rollback_are_cleaned() {
        let words = private();
        let table = Table::from_words(&words, 1);
        let base = table.frame_base();
        for index in 1..=100 {
            table.append(base + index, index).unwrap();
        }
        table.append(base + 50, 7).unwrap();
        assert_eq!(table.find(7, 1, u32::MAX).unwrap(), Some(base + 50));
        assert_eq!(table.find(60, 1, u32::MAX).unwrap(), None);
        assert_eq!(table.find(49, 1, u32::MAX).unwrap(), Some(base + 49));
        assert_eq!(table.page_of(base + 51), 0);
    }

    #[test]
    fn a_damaged_table_is_an_error_and_not_an_endless_loop() {
        let words = private();
        let table = Table::from_words(&words, 0);
        for slot in 0..SLOTS {
            table.slot(slot).store(u16::MAX, Ordering::Relaxed);
        }
        assert!(table.find(1, 1, 10).is_err());
        assert!(table.append(2, 1).is_err());
    }
}
