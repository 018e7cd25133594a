//! The rolling trace log (`tracing.*`): a file of bounded size, and a bounded number of older ones.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::Tracing;

/// A writer that starts a new file when the current one is full. Older files are `<path>.1` (newest) and up, with
/// `.lz4` behind if compressed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TraceFile(Arc<Mutex<Rolling>>);

#[derive(Debug)]
struct Rolling {
    path: PathBuf,
    file: File,
    written: u64,
    bytes_max: u64,
    count_max: usize,
    compress: bool,
}

impl TraceFile {
    /// Opens (appending) or creates the file and its folder.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn open(path: &Path, config: &Tracing) -> io::Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        let file = append(path)?;
        Ok(Self(Arc::new(Mutex::new(Rolling {
            path: path.to_owned(),
            written: file.metadata()?.len(),
            file,
            bytes_max: config.max_size_mb << 20,
            count_max: config.max_count,
            compress: config.compress,
        }))))
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

impl Write for TraceFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().file.flush()
    }
}

impl Rolling {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.written > 0 && self.written + line.len() as u64 > self.bytes_max {
            self.roll()?;
        }
        let written = self.file.write(line)?;
        self.written += written as u64;
        Ok(written)
    }

    fn older(&self, number: usize, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}{suffix}"));
        name.into()
    }

    fn roll(&mut self) -> io::Result<()> {
        for suffix in ["", ".lz4"] {
            let _ = fs::remove_file(self.older(self.count_max, suffix));
            for number in (1..self.count_max).rev() {
                let _ = fs::rename(self.older(number, suffix), self.older(number + 1, suffix));
            }
        }
        if self.count_max == 0 {
            fs::remove_file(&self.path)?;
        } else if self.compress {
            compress(&self.path, &self.older(1, ".lz4"))?;
            fs::remove_file(&self.path)?;
        } else {
            fs::rename(&self.path, self.older(1, ""))?;
        }
        self.file = append(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

fn compress(from: &Path, to: &Path) -> io::Result<()> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(File::create(to)?);
    io::copy(&mut File::open(from)?, &mut encoder)?;
    encoder.finish().map_err(io::Error::other)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_rolls_and_only_so_many_stay() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("sub/trace.log");
        let config = Tracing { enabled: true, path: None, max_size_mb: 1, max_count: 2, compress: true };
        let mut file = TraceFile::open(&path, &config).expect("open");
        for byte in b"abcd" {
            let block = vec![*byte; 1 << 20];
            file.write_all(&block).expect("write");
        }
        assert_eq!(fs::read(&path).expect("current")[0], b'd');
        let mut newest = Vec::new();
        let older = File::open(folder.path().join("sub/trace.log.1.lz4")).expect("older");
        io::copy(&mut lz4_flex::frame::FrameDecoder::new(older), &mut newest).expect("decode");
        assert_eq!(newest, vec![b'c'; 1 << 20]);
        assert_eq!(fs::read_dir(folder.path().join("sub")).expect("list").count(), 3);
    }
}
