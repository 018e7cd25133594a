//! `litefs ltx`: LTX files for people.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use litefs::database::log::segment_images;
use litefs::ltx::{Decoder, Header, Summary, verify};
use litefs::sqlite::page::{lock_page, page_checksum, page_offset};
use litefs::{Checksum, Pos};
use std::fmt::Write as _;
use std::os::unix::fs::FileExt;

use crate::cli::LtxCommand;
use crate::transfer::print;

/// Bytes read at once.
const READ_BYTES: usize = 1 << 18;

/// Runs one of the subcommands; 1 when what it checked is not in order.
///
/// # Errors
/// When a file cannot be read, or is damaged.
pub fn run(command: &LtxCommand) -> anyhow::Result<u8> {
    match command {
        LtxCommand::List { paths } => list(paths),
        LtxCommand::Dump { path } => dump(path),
        LtxCommand::Verify { paths } => verify_all(paths),
        LtxCommand::Apply { db, paths } => apply(db, paths),
    }
}

/// The files of these paths; a folder stands for its records in order: `.ltx` files by name (which is by TXID), or the segments
/// (`.seg`) of a log. The folder of a database stands for its log.
fn files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut inside = Vec::new();
        for folder in [path.join("ltx"), path.clone(), path.join("log")] {
            inside.append(&mut records_in(&folder)?);
        }
        ensure!(!inside.is_empty(), "{} holds no .ltx file and no .seg file", path.display());
        files.append(&mut inside);
    }
    Ok(files)
}

/// The files with records directly in this folder, sorted; none when there is no such folder.
fn records_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut inside = Vec::new();
    if !folder.is_dir() {
        return Ok(inside);
    }
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "ltx" || extension == "seg") {
            inside.push(path);
        }
    }
    inside.sort();
    Ok(inside)
}

/// Calls `each` with a reader at the start of every LTX image of the file; `each` reads exactly one. What a running
/// node has reserved behind the last image (zeroes) is not an image, nor is a record of a segment that is being written.
fn images(path: &Path, mut each: impl FnMut(&mut dyn BufRead) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    if path.extension().is_some_and(|extension| extension == "seg") {
        let places = segment_images(&file).with_context(|| format!("read {}", path.display()))?;
        for (offset, len) in places {
            file.seek(SeekFrom::Start(offset))?;
            let mut reader = BufReader::with_capacity(READ_BYTES, (&file).take(len));
            each(&mut reader).with_context(|| format!("{}", path.display()))?;
        }
        return Ok(());
    }
    let mut reader = BufReader::with_capacity(READ_BYTES, file);
    loop {
        match reader.fill_buf().with_context(|| format!("read {}", path.display()))?.first() {
            None | Some(0) => return Ok(()),
            Some(_) => each(&mut reader).with_context(|| format!("{}", path.display()))?,
        }
    }
}

fn line(header: &Header, post: Pos, pages: u32) -> String {
    format!(
        "{}-{} pre={} post={} pages={pages} commit={} page_size={} node={:016X} time_ms={}\n",
        header.min_txid,
        header.max_txid,
        header.pre_apply,
        post.checksum,
        header.commit,
        header.page_size,
        header.node_id,
        header.timestamp_ms
    )
}

fn list(paths: &[PathBuf]) -> anyhow::Result<u8> {
    for path in files(paths)? {
        images(&path, |reader| {
            let summary = verify(reader)?;
            print(&line(&summary.header, summary.post(), summary.pages))
        })?;
    }
    Ok(0)
}

fn dump(path: &Path) -> anyhow::Result<u8> {
    images(path, |reader| {
        let mut decoder = Decoder::new(reader)?;
        let header = *decoder.header();
        let mut text = format!("{header:#?}\n");
        let mut page = vec![0; header.page_size as usize];
        while let Some(pgno) = decoder.next_page(&mut page)? {
            writeln!(text, "page {pgno} checksum {}", page_checksum(pgno, &page))?;
            print(&std::mem::take(&mut text))?;
        }
        let (trailer, _) = decoder.finish()?;
        print(&format!("{text}{trailer:#?}\n"))
    })?;
    Ok(0)
}

fn verify_all(paths: &[PathBuf]) -> anyhow::Result<u8> {
    let mut count = 0_u64;
    let mut last: Option<Summary> = None;
    for path in files(paths)? {
        images(&path, |reader| {
            let summary = verify(reader)?;
            if let Some(last) = last
                && !summary.header.is_snapshot()
                && summary.header.pre() != last.post()
            {
                bail!("{} does not follow {}", summary.header.pre(), last.post());
            }
            last = Some(summary);
            count += 1;
            Ok(())
        })?;
    }
    let end = last.map_or(Pos::ZERO, |last| last.post());
    print(&format!("{count} records are in order, up to {end}\n"))?;
    Ok(0)
}

/// Applies in place: the last record's checksum must be the database's at the end.
fn apply(db: &Path, paths: &[PathBuf]) -> anyhow::Result<u8> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(db)
        .with_context(|| format!("open {}", db.display()))?;
    let mut last: Option<Summary> = None;
    for path in files(paths)? {
        images(&path, |reader| {
            let summary = apply_one(&file, reader, last.as_ref().map(Summary::post))?;
            last = Some(summary);
            Ok(())
        })?;
    }
    let Some(last) = last else { bail!("no record to apply") };
    file.sync_all()?;
    let actual = checksum(&file, &last.header)?;
    ensure!(
        actual == last.trailer.post_apply,
        "checksum is {actual}, the last record says {}",
        last.trailer.post_apply
    );
    print(&format!("{} is at {}\n", db.display(), last.post()))?;
    Ok(0)
}

fn apply_one(file: &File, reader: &mut dyn BufRead, at: Option<Pos>) -> anyhow::Result<Summary> {
    let mut decoder = Decoder::new(reader)?;
    let header = *decoder.header();
    if let Some(at) = at
        && !header.is_snapshot()
        && header.pre() != at
    {
        bail!("record starts at {}, database is at {at}", header.pre());
    }
    let mut page = vec![0; header.page_size as usize];
    let mut pages = 0;
    while let Some(pgno) = decoder.next_page(&mut page)? {
        file.write_all_at(&page, page_offset(pgno, header.page_size))?;
        pages += 1;
    }
    let (trailer, _) = decoder.finish()?;
    file.set_len(u64::from(header.commit) * u64::from(header.page_size))?;
    Ok(Summary { header, trailer, pages })
}

/// The database checksum of the first `commit` pages of a plain file (COMPAT §1).
pub fn checksum(file: &File, header: &Header) -> anyhow::Result<Checksum> {
    let mut page = vec![0; header.page_size as usize];
    let mut sum = Checksum::EMPTY;
    for pgno in (1..=header.commit).filter(|pgno| *pgno != lock_page(header.page_size)) {
        file.read_exact_at(&mut page, page_offset(pgno, header.page_size))?;
        sum = sum ^ page_checksum(pgno, &page);
    }
    Ok(sum)
}
