//! The pages of a transaction, read from the database file.

use std::fs::File;
use std::io;
use std::iter::Peekable;

use crate::database::PageSource;
use crate::os;
use crate::sqlite::page::page_offset;

/// Bytes read at once when pages lie side by side.
const READ_LEN_MAX: usize = 256 * 1024;

/// Reads the given pages, each once, in the given (ascending) order; neighbours together.
pub(crate) struct FilePages<'a, I: Iterator<Item = u32>> {
    file: &'a File,
    page_size: u32,
    pages: Peekable<I>,
    /// Number of the first page in `buffer`, and how many of its bytes were given out.
    first: u32,
    given: usize,
    buffer: Vec<u8>,
}

impl<'a, I: Iterator<Item = u32>> FilePages<'a, I> {
    /// A source of these pages.
    pub(crate) fn new(file: &'a File, page_size: u32, pages: I) -> Self {
        Self { file, page_size, pages: pages.peekable(), first: 0, given: 0, buffer: Vec::new() }
    }

    /// Reads the next run of neighbours; `false` after the last page.
    fn fill(&mut self) -> io::Result<bool> {
        let Some(first) = self.pages.next() else { return Ok(false) };
        let mut count = 1;
        while count < READ_LEN_MAX / self.page_size as usize
            && self.pages.next_if(|next| next.checked_sub(first) == u32::try_from(count).ok()).is_some()
        {
            count += 1;
        }
        self.buffer.resize(count * self.page_size as usize, 0);
        os::read_or_zero_at(self.file, &mut self.buffer, page_offset(first, self.page_size))?;
        self.first = first;
        self.given = 0;
        Ok(true)
    }
}

impl<I: Iterator<Item = u32>> PageSource for FilePages<'_, I> {
    fn next_page(&mut self) -> io::Result<Option<(u32, &[u8])>> {
        if self.given == self.buffer.len() && !self.fill()? {
            return Ok(None);
        }
        let size = self.page_size as usize;
        // At most READ_LEN_MAX / 512 pages lie in the buffer.
        let pgno = self.first + u32::try_from(self.given / size).unwrap_or_default();
        let page = &self.buffer[self.given..self.given + size];
        self.given += size;
        Ok(Some((pgno, page)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn gives_runs_single_pages_and_zeroes_beyond_the_end() {
        let file = tempfile::tempfile().unwrap();
        for pgno in 1..=1500_u32 {
            file.write_all_at(&pgno.to_be_bytes().repeat(128), page_offset(pgno, 512)).unwrap();
        }
        let wanted: Vec<u32> = [1, 3, 4, 5, 9].into_iter().chain(20..=1499).chain([1501]).collect();
        let mut source = FilePages::new(&file, 512, wanted.iter().copied());
        for pgno in &wanted {
            let (got, page) = source.next_page().unwrap().unwrap();
            let content = if *pgno > 1500 { 0 } else { *pgno };
            assert_eq!((got, page), (*pgno, &content.to_be_bytes().repeat(128)[..]));
        }
        assert!(source.next_page().unwrap().is_none());
    }
}
